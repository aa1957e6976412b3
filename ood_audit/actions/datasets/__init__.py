"""Datasets written out again, each format in a module that writes what `chosen.Chosen` gives."""

"""Datasets with labels, splits and boxes: each format in a module that gives `pictures.Picture`s."""

"""Embedding: compare the sources with the store, and embed what is new, here or on a Ray cluster; or import vectors."""

"""Scores: what images are compared with, how, and the table that comes of it."""

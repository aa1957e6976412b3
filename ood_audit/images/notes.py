"""Beginnings of the notes on images, by which other modules know them."""

TOO_SMALL = "box too small to tell"

"""How notes on images begin that others look for."""

TOO_SMALL = "box too small to tell"

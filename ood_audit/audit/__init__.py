"""What else is wrong with a data set: `duplicates`."""

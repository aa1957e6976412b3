"""Reports: the ranking, its tables and its page."""

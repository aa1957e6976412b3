"""What a report concludes from the scores: flags, shifts, wrong labels, duplicates, leaks, quality and shortcuts."""

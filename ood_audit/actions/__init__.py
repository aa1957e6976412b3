"""What is done about findings: exports, quarantine, and verdicts."""

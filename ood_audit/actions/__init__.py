"""What is done about findings: export and quarantine."""

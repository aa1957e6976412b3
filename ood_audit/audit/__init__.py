"""What an audit found (`issues`), and acting on it (`export`, `quarantine`)."""

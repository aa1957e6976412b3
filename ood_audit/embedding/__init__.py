"""Where the embedding job runs: on this machine (`local`)."""

"""Finding images (`sources`) and reading them (`decode`)."""

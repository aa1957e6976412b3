"""The errors that a user can do something about. Each message is one line: what is wrong, then the remedy."""


class OodAuditError(Exception):
    """The work failed (exit code 1)."""

    exit_code = 1


class UsageError(OodAuditError, ValueError):
    """The command or call was wrong (exit code 2)."""

    exit_code = 2


class StoreError(OodAuditError):
    """The store is missing, locked, of another version or of another encoder."""


class EncoderError(OodAuditError):
    """The model or its weights could not be loaded."""

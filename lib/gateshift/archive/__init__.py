"""The archive: executed notebooks with true cell statuses, redacted, sealed and readable as one report."""

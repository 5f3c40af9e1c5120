"""The log: a port, and one file per engine beside it."""

"""The log in one SQLite file: the default engine."""

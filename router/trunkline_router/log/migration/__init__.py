"""Copies a log, or a tenant of one, into another database of either engine."""

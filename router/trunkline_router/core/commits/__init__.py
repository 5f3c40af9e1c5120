"""Commits: the commit queue, publishing and fan-out."""

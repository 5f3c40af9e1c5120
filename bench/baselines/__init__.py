"""Baselines: a typical FastAPI application, and the bare libraries doing the same work."""

"""Uploads: an interface, and the engine that keeps them in a folder."""

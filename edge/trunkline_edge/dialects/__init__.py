"""Protocols of clients: a folder of pure codecs per dialect, and the registry."""

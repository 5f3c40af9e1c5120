"""Streamed messages: opened, extended, checkpointed, ended."""

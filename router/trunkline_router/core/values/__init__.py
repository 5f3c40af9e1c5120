"""Values of the core: topics, positions, log records, permissions."""

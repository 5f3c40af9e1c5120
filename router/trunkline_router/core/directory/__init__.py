"""Directory: links, connections, topics and their outboxes."""

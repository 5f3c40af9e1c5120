"""What the edge decides, without I/O: events in, effects out."""

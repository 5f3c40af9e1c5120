"""What the router decides, without I/O: events in, effects out."""

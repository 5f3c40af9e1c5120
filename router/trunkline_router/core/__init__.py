"""The router's decisions, without I/O: events in, effects out."""

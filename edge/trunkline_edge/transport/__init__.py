"""Transports of clients on the listening port: WebSockets and event streams, with or without TLS."""

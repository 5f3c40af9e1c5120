"""WebSockets: the listening port, the handshake, and one socket."""

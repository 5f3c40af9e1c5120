"""The listening port, and the clients on it: WebSockets and event streams."""

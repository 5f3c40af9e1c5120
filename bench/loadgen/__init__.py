"""Load generators: separate processes that take commands as JSON lines and return figures."""

"""Load generators: processes of their own that take orders as JSON lines and answer with figures."""

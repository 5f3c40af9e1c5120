"""The log in a PostgreSQL database, which several routers share: one owns it, the others wait."""

"""Authentication of clients: tokens, the keys that verify them, and admission."""

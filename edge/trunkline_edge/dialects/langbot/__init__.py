"""LangBot's WebSocket chat, docs/dialects/langbot.md."""

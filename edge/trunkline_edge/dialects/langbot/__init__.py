"""LangBot's WebSocket chat, see docs/dialects/langbot.md."""

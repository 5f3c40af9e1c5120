"""maim_message's two families of clients, docs/dialects/maim.md and docs/dialects/maim_api.md."""

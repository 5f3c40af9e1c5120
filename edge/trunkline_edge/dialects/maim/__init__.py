"""maim_message's two protocols, see docs/dialects/maim.md and docs/dialects/maim_api.md."""

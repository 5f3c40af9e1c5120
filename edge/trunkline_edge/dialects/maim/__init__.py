"""maim_message's three protocols, see docs/dialects/maim.md, maim_api.md and maim_router.md."""

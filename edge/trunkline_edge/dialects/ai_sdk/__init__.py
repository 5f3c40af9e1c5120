"""The UI message stream of the Vercel AI SDK, see docs/dialects/ai_sdk.md."""

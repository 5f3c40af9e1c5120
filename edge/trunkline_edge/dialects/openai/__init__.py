"""OpenAI's chat completions and models, see docs/dialects/openai.md."""

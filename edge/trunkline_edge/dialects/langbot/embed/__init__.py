"""The files of the chat widget that web pages embed."""

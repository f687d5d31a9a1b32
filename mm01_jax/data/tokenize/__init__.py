"""Text to a folder of tokens, once and in parallel (docs/data.md, "Tokens on disk")."""

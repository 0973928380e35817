"""Text engine: an OpenAI-compatible server on a unix socket around Transformers' batching manager."""

"""The router: OpenAI's API in, ready replicas out."""

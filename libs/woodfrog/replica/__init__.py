"""The replica's side of the control contract. Imported inside engines: standard library, `woodfrog.errors` and, for HTTP, uvicorn."""

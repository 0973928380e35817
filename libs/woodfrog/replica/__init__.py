"""The replica's side of the control contract. Imported inside engines: standard library and `woodfrog.errors` only."""

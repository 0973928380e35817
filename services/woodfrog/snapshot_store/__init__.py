"""Keeps manifests and their chunks on local disk. `python -m woodfrog.snapshot_store` runs it."""

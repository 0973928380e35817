"""The value types that every part of woodfrog speaks of. Frozen, stdlib only."""

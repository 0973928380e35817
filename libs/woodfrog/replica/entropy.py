"""Fresh randomness for a clone: restored processes share the state of every generator until it is reseeded."""

import hashlib
import os
import random
import ssl
import sys
from typing import Any


def reseed(entropy: bytes) -> None:
    """Seed OpenSSL, `random`, and numpy and torch where imported, from `entropy` mixed with the kernel's own.

    `hash()` keeps its key: nothing can change that.
    """
    seed = hashlib.blake2b(entropy + os.urandom(64)).digest()

    def part(name: bytes, size_bytes: int) -> int:
        return int.from_bytes(hashlib.blake2b(seed, person=name, digest_size=size_bytes).digest())

    ssl.RAND_add(seed, float(len(seed)))
    random.seed(part(b"random", 64))
    if numpy := _loaded("numpy.random"):
        numpy.seed(part(b"numpy", 4))
    if torch := _loaded("torch"):
        torch.manual_seed(part(b"torch", 8) >> 1)


def draw() -> dict[str, Any]:
    """One draw from each generator; None for one that is not loaded."""
    numpy, torch = _loaded("numpy.random"), _loaded("torch")
    return {
        "openssl": ssl.RAND_bytes(16).hex(),
        "random": random.random(),
        "numpy": float(numpy.random()) if numpy else None,
        "torch": float(torch.rand(())) if torch else None,
        "urandom": os.urandom(16).hex(),
    }


def _loaded(module: str) -> Any:
    return sys.modules.get(module)

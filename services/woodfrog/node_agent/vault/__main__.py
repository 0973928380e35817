"""`python -m woodfrog.node_agent.vault LOCK SOCKET ARENA_BYTES READERS MODULE:DEVICE NUMBER`: one GPU's vault.

It ends with its parent, and when SIGTERM comes. It starts once nobody else holds LOCK: a predecessor that was killed takes
seconds to give its memory back, and what is free would be told wrong.
"""

import asyncio
import fcntl
import importlib
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from woodfrog.errors import InvalidArgument, Unavailable
from woodfrog.node_agent.vault.arena import Arena
from woodfrog.node_agent.vault.vault import Vault
from woodfrog.replica.control import ControlServer, Fields


def main() -> None:
    lock, path, arena_bytes, readers, device, number = sys.argv[1:7]
    held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(held, fcntl.LOCK_EX)
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # numbers mean the same as to nvidia-smi
    module, _, kind = device.partition(":")
    arena = Arena(int(arena_bytes), int(readers))
    vault = Vault(getattr(importlib.import_module(module), kind)(int(number)), arena, int(readers))
    asyncio.run(_serve(vault, Path(path)))


async def _serve(vault: Vault, path: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with ControlServer(_verbs(vault), path):
        await stop.wait()


def _verbs(vault: Vault) -> dict[str, Any]:
    async def run(work: Callable[[], Any]) -> Any:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise Unavailable("READ_FAILED", f"the weights cannot be read: {error}") from None

    async def load(fields: Fields) -> dict[str, Any]:
        weights, folder = _text(fields, "weights"), Path(_text(fields, "folder"))
        host, size_max = bool(fields.get("host")), fields.get("size_max")
        limit = size_max if isinstance(size_max, int) else None
        fd, size_bytes = await run(partial(vault.load, weights, folder, host, limit))
        return {"fds": [fd], "size_bytes": size_bytes}

    async def fill(fields: Fields) -> dict[str, Any]:
        weights, folder = _text(fields, "weights"), Path(_text(fields, "folder"))
        if len(fields["fds"]) != 1:
            raise InvalidArgument("BAD_FIELD", "fill needs one descriptor of a GPU's memory")
        host, size_max = bool(fields.get("host")), fields.get("size_max")
        limit = size_max if isinstance(size_max, int) else None
        await run(partial(vault.fill, weights, folder, fields["fds"][0], host, limit))
        return {}

    async def export(fields: Fields) -> dict[str, Any]:
        fd, size_bytes = await run(partial(vault.export, _text(fields, "weights")))
        return {"fds": [fd], "size_bytes": size_bytes}

    async def drop(fields: Fields) -> dict[str, Any]:
        device, host = bool(fields.get("device")), bool(fields.get("host"))
        await run(partial(vault.drop, _text(fields, "weights"), device=device, host=host))
        return {}

    async def describe(fields: Fields) -> dict[str, Any]:
        return dict(await run(vault.describe))

    return {"load": load, "fill": fill, "export": export, "drop": drop, "describe": describe}


def _text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidArgument("BAD_FIELD", f"{name} is a text that is not empty")
    return value


if __name__ == "__main__":
    main()

"""Runs the programs in tests/conformance/clients, each with the client that it is for."""

import asyncio
import os
import sys
from pathlib import Path

import openai

from tests.capabilities import CLIENTS, ROOT

_PROGRAMS = ROOT / "tests" / "conformance" / "clients"
_LIMIT_S = 280.0
NAMES = ("openai-oldest", "openai-newest", "litellm", "node")


async def run(name: str, base_url: str, model: str, *routes: str) -> str:
    """The last line that the program printed: the version of its client. Raises AssertionError with what it said when it failed."""
    python = [sys.executable, "-W", "ignore"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    match name:
        case "openai-oldest":
            command = [*python, str(_PROGRAMS / "python_openai.py")]
            env["PYTHONPATH"] = str(folder("openai-*"))
        case "openai-newest":
            command = [*python, str(_PROGRAMS / "python_openai.py")]
        case "litellm":
            command = [*python, str(_PROGRAMS / "python_litellm.py")]
            # Else its first import asks a server for prices.
            env |= {"PYTHONPATH": str(folder("litellm")), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        case "node":
            command = ["node", str(_PROGRAMS / "node_openai.mjs")]
            env["OPENAI_SDK"] = str(folder("node-*"))
        case _:
            raise AssertionError(name)
    process = await asyncio.create_subprocess_exec(
        *command, base_url, model, *routes, env=env,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_LIMIT_S):
            said, error = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{name}: {error.decode()[-2000:]}"
    return said.decode().split()[-1]


def expected(name: str) -> str:
    """What `run` returns for the client that was meant."""
    match name:
        case "openai-oldest":
            return folder("openai-*").name.removeprefix("openai-")
        case "openai-newest":
            return openai.__version__
        case "node":
            return folder("node-*").name.removeprefix("node-")
    return "ok"


def folder(pattern: str) -> Path:
    (found,) = CLIENTS.glob(pattern)
    return found

"""LiteLLM's proxy as one process before one OpenAI-compatible server, as its own documentation starts it."""

import asyncio
import json
import os
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.capabilities import CLIENTS
from tests.service.processes import free_addresses

INSTALLED = CLIENTS / "litellm-proxy" / ".done"
_START_S = 120.0
_WARM_REQUESTS = 50  # its first ones take seconds


@asynccontextmanager
async def serving(folder: Path, model: str, server: str) -> AsyncIterator[tuple[str, int]]:
    """Its address and the process that serves. `server`: host and port. Raises RuntimeError when it does not start."""
    (address,) = free_addresses(1)
    host, _, port = address.partition(":")
    to = {"model": f"openai/{model}", "api_base": f"http://{server}/v1", "api_key": "none"}
    config = folder / "litellm.yaml"  # JSON is YAML
    config.write_text(json.dumps({"model_list": [{"model_name": model, "litellm_params": to}]}))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
    }
    # No key is asked for, as by the router beside it; requests would cost it more with one.
    env["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"
    log_path = folder / "litellm.log"
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "KILL", str(INSTALLED.parent / "bin" / "litellm"),
            "--config", str(config), "--host", host, "--port", port, "--num_workers", "1",
            env=env, cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        async with asyncio.timeout(_START_S):
            while not await asyncio.to_thread(_alive, address):
                if process.returncode is not None:
                    raise RuntimeError(f"litellm ended: {log_path.read_text()[-1000:]}")
                await asyncio.sleep(0.5)
        for _ in range(_WARM_REQUESTS):
            await asyncio.to_thread(_ask, address, model)
        yield address, process.pid
    except TimeoutError:
        raise RuntimeError(f"litellm does not start: {log_path.read_text()[-1000:]}") from None
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _ask(address: str, model: str) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}).encode()
    url, kind = f"http://{address}/v1/chat/completions", {"content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, body, kind), timeout=60) as answer:
        assert b"simulated-engine" in answer.read()


def _alive(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/health/liveliness", timeout=2):
            return True
    except OSError:
        return False

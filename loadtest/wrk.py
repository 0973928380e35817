"""wrk (Debian's package) as load: N connections, each of which asks again as soon as its answer is whole."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PATH = "/v1/chat/completions"
_SCRIPT = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = [==[%s]==]
done = function(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.stderr:write(string.format(
    '{"requests": %%d, "bytes": %%d, "seconds": %%f, "failed": %%d, "p50_ms": %%f, "p99_ms": %%f}',
    summary.requests, summary.bytes, summary.duration / 1e6, failed,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True, slots=True)
class WrkLoad:
    requests: int  # answered
    bytes: int
    seconds: float
    failed: int
    p50_ms: float
    p99_ms: float


async def load(
    address: str, connections: int, seconds: float, request: Mapping[str, object]
) -> WrkLoad:
    """Raises RuntimeError when wrk is missing, or an answer was no 200."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is missing; apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="woodfrog-wrk-") as folder:
        script = Path(folder) / "ask.lua"
        script.write_text(_SCRIPT % json.dumps(request))
        process = await asyncio.create_subprocess_exec(
            "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s",
            "-s", str(script), f"http://{address}{_PATH}",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            printed, told = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode:
        raise RuntimeError(f"wrk failed on {address}: {(told or printed).decode()[-400:]}")
    seen = WrkLoad(**json.loads(told))
    if seen.failed or not (seen.requests or "stream" in request):
        raise RuntimeError(f"{seen.failed} of {seen.requests} requests to {address} failed")
    return seen

"""The engines that this node can start, and how."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent.sandbox import FIRST_PID, REPLICA, WEIGHTS, Sandbox

#: The module that is run.
ENGINES = {"transformers": "woodfrog.engine", "llamacpp": "woodfrog.llamacpp"}
STDERR = REPLICA / "stderr"
#: A process that has opened a GPU cannot be dumped by CRIU alone.
CPU: Mapping[str, str] = {"CUDA_VISIBLE_DEVICES": ""}
_PASSED_ON = ("PYTHONPATH", "LD_LIBRARY_PATH")  # where code and the GPU's libraries are found


def code_folders(criu: Path) -> tuple[Path, ...]:
    """Where the code of engines and of CRIU lies on the host; none within another."""
    entries = [sys.prefix, sys.base_prefix, *sys.path, str(criu.parent)]
    found = sorted({Path(os.path.abspath(e)) for e in entries if e and os.path.isdir(e)})
    return tuple(
        path for path in found if not any(path.is_relative_to(o) for o in found if o != path)
    )


async def start_engine(sandbox: Sandbox, spec: ModelSpec, device: Mapping[str, str]) -> int:
    """Starts the engine's process, with the variables of its device; its id inside."""
    env = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        "OMP_WAIT_POLICY": "passive",  # threads that spin at barriers starve each other on a busy node
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        **device,
        # One heap instead of one for each thread: a snapshot holds what is in between as well.
        "MALLOC_ARENA_MAX": "1",
        "LANG": "C.UTF-8",
        "WOODFROG_SOCKET": str(REPLICA / "engine.sock"),
        "WOODFROG_CONTROL": str(REPLICA / "control.sock"),
        "WOODFROG_MODEL": str(WEIGHTS),
        "WOODFROG_MODEL_NAME": spec.name,
        "WOODFROG_ENGINE_ARGS": json.dumps({"slots": spec.slots, **spec.engine_args}),
    }
    argv = [sys.executable, "-m", ENGINES[spec.engine]]
    return await sandbox.spawn(argv, env, stderr=STDERR, last_pid=FIRST_PID - 1)

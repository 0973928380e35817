"""The process that calls the driver: one JSON request a line on stdin, one answer a line on stdout, in any order.

Run as `python -m woodfrog.node_agent.cuda.driver_process [MODULE:DRIVER]`; the first line out says that the driver is ready, or why
not. It ends when stdin does.
"""

import importlib
import json
import sys
import threading
from typing import Any

from woodfrog.node_agent.cuda.driver import REAL, CudaError, Driver


def main() -> None:
    module, _, name = (sys.argv[1] if len(sys.argv) > 1 else REAL).partition(":")
    try:
        driver: Driver = getattr(importlib.import_module(module), name)()
    except (CudaError, ImportError, RuntimeError) as error:
        _say({"ok": False, "error": str(error)})
        return
    _say({"ok": True})
    for line in sys.stdin:
        # A thread each: several processes are restored at the same time.
        threading.Thread(target=_serve, args=(driver, json.loads(line)), daemon=True).start()


def _serve(driver: Driver, request: dict[str, Any]) -> None:
    answer: dict[str, Any] = {"id": request["id"], "ok": True}
    try:
        match request["op"]:
            case "state":
                answer["state"] = driver.state(request["pid"]).value
            case "lock":
                driver.lock(request["pid"], request["timeout_ms"])
            case "checkpoint":
                driver.checkpoint(request["pid"])
            case "restore":
                driver.restore(request["pid"], request["moved"])
            case "unlock":
                driver.unlock(request["pid"])
    except CudaError as error:
        answer |= {"ok": False, "error": str(error)}
    _say(answer)


_saying = threading.Lock()


def _say(answer: dict[str, Any]) -> None:
    with _saying:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

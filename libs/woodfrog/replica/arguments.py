"""An engine's arguments: whole numbers within bounds, from a JSON object in its environment."""

import json
import os
from collections.abc import Mapping

from woodfrog.errors import InvalidArgument


def read(text: str, bounds: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Those that are given, and `threads`, which is this process's CPUs if it is not. Raises InvalidArgument."""
    try:
        given = json.loads(text)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise InvalidArgument("BAD_SETTING", "WOODFROG_ENGINE_ARGS is not a JSON object")
    for name, value in given.items():
        if name not in bounds:
            raise InvalidArgument(
                "UNKNOWN_SETTING",
                f"WOODFROG_ENGINE_ARGS: {name!r} is unknown; known are {', '.join(bounds)}",
            )
        low, high = bounds[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidArgument(
                "BAD_SETTING",
                f"WOODFROG_ENGINE_ARGS: {name} is a whole number from {low} to {high}",
            )
    given["threads"] = given.get("threads") or len(os.sched_getaffinity(0))
    return given


def variable(environ: Mapping[str, str], name: str) -> str:
    """Raises InvalidArgument when it is not set."""
    value = environ.get(name)
    if not value:
        raise InvalidArgument("MISSING_SETTING", f"environment variable {name} is not set")
    return value

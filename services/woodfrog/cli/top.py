"""`woodfrog top`: models on their rungs, drawn anew each second."""

import asyncio
import shutil
import sys

from woodfrog.cli import commands
from woodfrog.cli.cluster import Cluster
from woodfrog.cli.show import table
from woodfrog.errors import Unavailable
from woodfrog.model.placement import ClusterView, ModelView
from woodfrog.model.rung import Rung

_EVERY_S = 1.0
_RUNGS = (Rung.ABSENT, Rung.STORED, Rung.FROZEN, Rung.PARKED, Rung.HOT, Rung.SERVING)
_OTHER_SCREEN, _BACK = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"


async def top(cluster: Cluster, *, once: bool) -> None:
    """Until Ctrl-C, which leaves the terminal as it was; `once` prints one view and ends."""
    if once or not sys.stdout.isatty():
        print(draw(await commands.describe(cluster)))
        return
    print(_OTHER_SCREEN, end="", flush=True)
    try:
        while True:
            size = shutil.get_terminal_size()
            try:
                said = draw(await commands.describe(cluster))
            except Unavailable as error:  # the scheduler may be back in a moment
                said = f"woodfrog: {error.message}"
            lines = [line[: size.columns] for line in said.splitlines()[: size.lines - 1]]
            screen = "".join(f"{line}{_REST_OF_LINE}\r\n" for line in lines)
            print(f"{_HOME}{screen}{_REST}", end="", flush=True)
            await asyncio.sleep(_EVERY_S)
    finally:
        print(_BACK, end="", flush=True)


def draw(view: ClusterView) -> str:
    """Those that answer first, then by rung, highest first."""
    models = sorted(
        view.models, key=lambda each: (-_active(each), -_RUNGS.index(each.rung), each.model)
    )
    rows = [
        (
            each.model,
            "●" * (1 + _RUNGS.index(each.rung)) + "·" * (len(_RUNGS) - 1 - _RUNGS.index(each.rung)),
            each.rung.value,
            len(each.replicas),
            _active(each),
            "-" if each.idle_s is None else f"{each.idle_s:.0f} s",
            "-" if each.predicted_ms is None else f"{each.predicted_ms:.0f} ms",
        )
        for each in models
    ]
    header = ("MODEL", "LADDER", "RUNG", "REPLICAS", "ACTIVE", "IDLE", "NEXT WAKE")
    nodes = [commands.node_line(node) for node in view.nodes]
    return "\n".join([*nodes, "", table(header, rows)])


def _active(model: ModelView) -> int:
    return sum(replica.active for replica in model.replicas)

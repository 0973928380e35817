"""Draws docs/ladder.svg from the rungs that the code knows: `.venv/bin/python docs/ladder.py`."""

from html import escape
from pathlib import Path

from woodfrog.model.rung import Rung

OUT = Path(__file__).with_name("ladder.svg")
WIDTH, ROW, TOP = 860, 62, 64
LADDER_X, LADDER_WIDTH, WHAT_X, UP_X = 24, 128, 184, 548

#: What a rung is on the node, and how a request gets from there to the top.
ROWS: dict[Rung, tuple[str, str]] = {
    Rung.SERVING: ("a process that answers", "nothing to do"),
    Rung.HOT: ("the process; weights on the GPU, KV given back", "KV back, thaw"),
    Rung.PARKED: ("the process; weights in memory, KV given back", "weights back, thaw"),
    Rung.FROZEN: ("no process; snapshot and weights on disk", "restore by CRIU, thaw, canary"),
    Rung.STORED: ("nothing; snapshot and weights in the store", "as frozen, while bytes arrive"),
    Rung.ABSENT: ("weights only; no snapshot fits", "cold start, then a checkpoint"),
}


def draw() -> str:
    rungs = sorted(Rung, key=lambda rung: -rung.height)
    height = TOP + ROW * len(rungs) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="15">',
        "<title>The ladder: where a model rests, and how a request lifts it</title>",
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8" fill="#fcfdf9" '
        'stroke="#c9d6bd"/>',
        _text(LADDER_X, 34, "rung", "#6b7a5e"),
        _text(WHAT_X, 34, "what is on the node", "#6b7a5e"),
        _text(UP_X, 34, "how a request lifts it", "#6b7a5e"),
    ]
    bottom = TOP + ROW * len(rungs) - 8
    parts += [
        f'<line x1="{x}" y1="{TOP - 14}" x2="{x}" y2="{bottom}" stroke="#7c5a3a" stroke-width="6" '
        'stroke-linecap="round"/>'
        for x in (LADDER_X, LADDER_X + LADDER_WIDTH)
    ]
    for row, rung in enumerate(rungs):
        what, up = ROWS[rung]
        middle = TOP + ROW * row + ROW // 2 - 12
        dash = ' stroke-dasharray="7 7"' if not up else ""
        parts += [
            f'<line x1="{LADDER_X}" y1="{middle + 12}" x2="{LADDER_X + LADDER_WIDTH}" '
            f'y2="{middle + 12}" stroke="#7c5a3a" stroke-width="5"{dash}/>',
            _text(LADDER_X + LADDER_WIDTH / 2, middle + 2, rung.value, "#23331a", "middle", "bold"),
            _text(WHAT_X, middle + 6, what, "#23331a" if up else "#8a9680"),
            _text(UP_X, middle + 6, f"↑ {up}" if up else "", "#2f6b2f"),
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(
    x: float, y: float, text: str, fill: str, anchor: str = "start", weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{fill}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )


if __name__ == "__main__":
    OUT.write_text(draw())

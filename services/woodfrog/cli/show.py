"""Tables for the terminal. What a client named reaches no terminal as an escape sequence."""

import shutil
from collections.abc import Sequence

_UNITS = ("B", "kB", "MB", "GB", "TB")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell; cells that are numbers stand right."""
    cells = [[plain(str(cell)) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [bool(rows) and all(_numeric(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )


def plain(text: str) -> str:
    """With a question mark for each character that does not show itself."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(count: float) -> str:
    for unit in _UNITS[:-1]:
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {_UNITS[-1]}"


def rule(title: str) -> str:
    width = min(shutil.get_terminal_size().columns, 78)
    return f"── {title} ".ljust(width, "─")


def _numeric(cell: object) -> bool:
    text = str(cell).replace(",", "").removesuffix(" ms").removesuffix(" s").removesuffix("×")
    return text.replace(".", "", 1).replace("-", "", 1).strip().split(" ")[0].isdigit()

"""Adds to a ledger until it is killed, and says after each add how many there were: `python -m … LEDGER`."""

import itertools
import sys
from pathlib import Path

from woodfrog.metering import Ledger, Row, Usage

MODELS = 3  # in turn
HOUR = 500_000


def row(number: int) -> Row:
    """The `number`th add."""
    usage = Usage(requests=1, prompt_tokens=number, slot_s=0.25)
    return Row(HOUR + number // 1000 * 24 * 70, "tenant", f"m{number % MODELS}", usage)


def main() -> None:
    ledger = Ledger(Path(sys.argv[1]))
    for number in itertools.count():
        ledger.add([row(number), row(number)])
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

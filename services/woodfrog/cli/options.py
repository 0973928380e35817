"""What commands take from the command line: numbers within bounds, lists, paths.

A mistake is answered by one sentence that says what is wrong and what is allowed, with exit code 2.
"""

import argparse
import math
import re
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

_SHOWN_CHARACTERS = 60
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_SPAN = re.compile(r"([0-9]{1,6})([hd])")
_HOURS_MAX = 10 * 366 * 24
_NEGATIVE = re.compile(r"-(\d*\.?\d+(e[+-]?\d+)?|inf|infinity|nan)$", re.IGNORECASE)
T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """Of any command of ours. An option's `type` is one of those below: argparse would tell another's function name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = _NEGATIVE  # argparse takes -inf for an option

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see: {self.prog} --help\n")


def whole(low: int, high: int, unit: str = "") -> Callable[[str], int]:
    """A whole number within both."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise _wrong(text, f"not a whole number from {low} to {high} {unit}")
        return value

    return read


def number(low: float, high: float, unit: str = "") -> Callable[[str], float]:
    """A number within both, which are finite."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise _wrong(text, f"not a number from {low:.12g} to {high:.12g} {unit}")
        return value

    return read


def moment(text: str) -> float:
    """A time as ISO 8601 has it, of UTC unless it says otherwise; seconds since the epoch."""
    try:
        said = datetime.fromisoformat(text)
        return (said if said.tzinfo else said.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise _wrong(text, "not a time such as 2026-11-26 or 2026-11-26T14:00") from None


def hours(text: str) -> int:
    """Of a span such as 24h or 7d."""
    found = _SPAN.fullmatch(text)
    count = int(found[1]) * (24 if found[2] == "d" else 1) if found else 0
    if not 1 <= count <= _HOURS_MAX:
        raise _wrong(text, "not a span such as 24h or 7d, of ten years at most")
    return count


def gib(low_bytes: int, high_bytes: int) -> Callable[[str], int]:
    """Bytes, said in GiB."""
    in_gib = number(low_bytes / (1 << 30), high_bytes / (1 << 30), "GiB")
    return lambda text: int(in_gib(text) * (1 << 30))


def one_of(names: Collection[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in names:
            raise _wrong(text, f"none of: {', '.join(names)}")
        return text

    return read


def listed(one: Callable[[str], T]) -> Callable[[str], list[T]]:
    """At least one, with commas between."""
    return lambda text: [one(part) for part in text.split(",")]


def name(text: str) -> str:
    """Part of a file's name."""
    if not _NAME.fullmatch(text):
        raise _wrong(text, "not letters, digits, '.', '_', '+' and '-'")
    return text


def path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give a path")
    return Path(text)


def file(text: str) -> Path:
    """One that is there."""
    try:
        there = path(text).is_file()
    except OSError as error:
        raise _wrong(text, f"of no use: {error.strerror}") from None
    if not there:
        raise _wrong(text, "not a file that is there")
    return Path(text)


def folder(text: str) -> Path:
    """One that is there, or can be made."""
    wanted = path(text).absolute()
    try:
        usable = next(each for each in (wanted, *wanted.parents) if each.exists()).is_dir()
    except OSError as error:
        raise _wrong(text, f"of no use: {error.strerror}") from None
    if not usable:
        raise _wrong(text, "not a folder, nor below one")
    return Path(text)


def _wrong(text: str, what: str) -> argparse.ArgumentTypeError:
    shown = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
    return argparse.ArgumentTypeError(f"{shown!r} is {what}".rstrip())

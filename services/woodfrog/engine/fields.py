"""Fields of a request's body: their kind and their bounds. Pure; every refusal names the field."""

from collections.abc import Mapping
from typing import Any, NoReturn

from woodfrog.errors import InvalidArgument

Body = Mapping[str, Any]


def boolean(body: Body, name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        bad(name, "is true or false")
    return bool(value)


def integer(body: Body, name: str, low: int, high: int | None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        bad(name, "is a whole number")
    if value < low or (high is not None and value > high):
        bad(name, f"is at least {low}" if high is None else f"is from {low} to {high}")
    return int(value)


def number(body: Body, name: str, low: float, high: float, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        bad(name, "is a number")
    if not low <= value <= high:
        bad(name, f"is from {low:g} to {high:g}")
    return float(value)


def text(body: Body, name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        bad(name, "is a text")
    return value


def bad(param: str, what: str) -> NoReturn:
    raise InvalidArgument("INVALID_VALUE", f"'{param}' {what}", param=param)


def unsupported(param: str, what: str) -> NoReturn:
    """For what OpenAI has and this model has not."""
    raise InvalidArgument("UNSUPPORTED_PARAMETER", f"'{param}' {what}", param=param)

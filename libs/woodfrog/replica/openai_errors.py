"""Errors as OpenAI's clients know them. Pure."""

from typing import Any

from woodfrog.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable, WoodfrogError

_STATUS: dict[type[WoodfrogError], tuple[int, str]] = {
    InvalidArgument: (400, "invalid_request_error"),
    NotFound: (404, "invalid_request_error"),
    ResourceExhausted: (429, "rate_limit_error"),
    Unavailable: (503, "server_error"),
}


def error(kind: WoodfrogError) -> tuple[int, dict[str, Any]]:
    """HTTP status and OpenAI's error object."""
    status, name = next(
        (s for c, s in _STATUS.items() if isinstance(kind, c)), (500, "server_error")
    )
    return status, error_object(kind.message, name, kind.metadata.get("param"), kind.reason.lower())


def error_object(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}

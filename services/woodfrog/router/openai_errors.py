"""The table between woodfrog.errors and OpenAI's error objects over HTTP, both ways."""

import json
import math
from typing import Any

from woodfrog import errors

_INVALID = "invalid_request_error"
_SERVER = "server_error"
_QUOTA = "insufficient_quota"
_RATE = "rate_limit_exceeded"
_RETRY_AFTER_S_MAX = (
    60.0  # a longer one OpenAI's clients do not obey: old ones come at once, new ones never
)
_TABLE: dict[type[errors.WoodfrogError], tuple[int, str]] = {
    errors.InvalidArgument: (400, _INVALID),
    errors.Unauthenticated: (401, _INVALID),
    errors.NotFound: (404, _INVALID),
    errors.AlreadyExists: (409, _INVALID),
    errors.Aborted: (409, _SERVER),
    errors.FailedPrecondition: (503, _SERVER),  # nothing is wrong with the request
    errors.ResourceExhausted: (429, "rate_limit_error"),
    errors.Unavailable: (503, _SERVER),
    errors.DeadlineExceeded: (504, _SERVER),
    errors.DataLoss: (500, _SERVER),
    errors.Internal: (500, _SERVER),
}
_CLASSES: dict[int, type[errors.WoodfrogError]] = {
    400: errors.InvalidArgument,
    404: errors.NotFound,
    408: errors.DeadlineExceeded,
    409: errors.Aborted,
    429: errors.ResourceExhausted,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
}

Headers = list[tuple[bytes, bytes]]


class Refusal(Exception):
    """An error response, ready to be sent."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        type_: str = _INVALID,
        param: str | None = None,
        headers: Headers | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or []
        self.error: dict[str, Any] = {
            "message": message,
            "type": type_,
            "param": param,
            "code": code,
        }

    @property
    def reason(self) -> str:
        """For spans and metrics; there are no more of them than are written in the code."""
        return str(self.error["code"]).upper()

    @property
    def body(self) -> bytes:
        return json.dumps({"error": self.error}).encode()


def refusal(error: errors.WoodfrogError) -> Refusal:
    """`param` comes from the error's metadata; when to come back, or not to, goes in the forms that OpenAI's clients obey."""
    status, type_ = _TABLE[type(error)]
    headers: Headers = []
    if error.retry_after_s is not None:
        after_s = min(error.retry_after_s, _RETRY_AFTER_S_MAX)
        headers = [
            (b"retry-after-ms", b"%d" % math.ceil(after_s * 1e3)),
            (b"retry-after", b"%d" % math.ceil(after_s)),
        ]
    param, code = error.metadata.get("param"), error.reason.lower()
    if code == _QUOTA:
        type_ = _QUOTA  # as OpenAI has it, in both fields
    elif code == _RATE:
        type_ = error.metadata.get("limit", type_)  # OpenAI's is which one: requests or tokens
    if isinstance(error, errors.FailedPrecondition) or code == _QUOTA:
        headers.append((b"x-should-retry", b"false"))
    return Refusal(status, error.message, code, type_=type_, param=param, headers=headers)


def from_engine(status: int, body: bytes, retry_after_ms: bytes | None) -> errors.WoodfrogError:
    """The class for an engine's error response, with the engine's message."""
    return _from_object(status, object_in(body), retry_after_ms)


def from_event(value: dict[str, Any]) -> errors.WoodfrogError:
    """The class for the error object of an SSE event, which has no status of its own."""
    status = next((code for code, kind in _TABLE.values() if kind == value.get("type")), 500)
    return _from_object(status, value, None)


def in_a_line(status: int, body: bytes) -> bytes:
    """An engine's error response without line ends, which an event cannot hold; of what is none of OpenAI's, its status."""
    error = object_in(body)
    if not error:
        text = f"the engine answered with status {status}"
        return Refusal(status, text, "engine_error", type_=_SERVER).body
    return json.dumps({"error": error}).encode()


def event(body: bytes, *, typed: bool) -> bytes:
    """An error response's body as a server-sent event. `typed`: as streams of /v1/responses have it, whose readers may
    look for its type; OpenAI's clients look for `error` in either.
    """
    if not typed:
        return b"data: " + body + b"\n\n"
    error = object_in(body)
    said = {name: error.get(name) for name in ("code", "message", "param")}
    value = json.dumps({"type": "error", **said, "error": error})
    return b"event: error\ndata: " + value.encode() + b"\n\n"


def object_in(body: bytes) -> dict[str, Any]:
    """The error object in a response body or an SSE event; empty when there is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) else {}


def _from_object(
    status: int, value: dict[str, Any], retry_after_ms: bytes | None
) -> errors.WoodfrogError:
    default = errors.InvalidArgument if 400 <= status < 500 else errors.Internal
    cls = _CLASSES.get(status, default)
    code = value.get("code")
    reason = code.upper() if isinstance(code, str) and code else "ENGINE_ERROR"
    message = str(value.get("message") or f"the engine answered with status {status}")
    metadata = {"param": value["param"]} if value.get("param") else {}
    retry_after_s = None
    if retry_after_ms is not None and retry_after_ms.isdigit():
        retry_after_s = int(retry_after_ms) / 1e3
    return cls(reason, message, retry_after_s=retry_after_s, **metadata)

"""Errors, classed by what the caller should do. `woodfrog.errors.status` takes them over gRPC and back.

Code matches on the class or on `reason`, never on the message, which is for people: what failed, why, what to do.
"""


class WoodfrogError(Exception):
    """`reason` is UPPER_SNAKE and stable; `metadata` holds each variable of the message."""

    def __init__(
        self, reason: str, message: str, *, retry_after_s: float | None = None, **metadata: object
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.metadata = {key: str(value) for key, value in metadata.items()}


class InvalidArgument(WoodfrogError):
    """The request can never succeed: mend it."""


class NotFound(WoodfrogError):
    """What it names does not exist."""


class Unauthenticated(WoodfrogError):
    """Nobody known asks: send a valid key."""


class AlreadyExists(WoodfrogError):
    """What it would create exists."""


class FailedPrecondition(WoodfrogError):
    """The system is in the wrong state for it."""


class Aborted(WoodfrogError):
    """Lost a race: read again and redo the whole transaction."""


class ResourceExhausted(WoodfrogError):
    """No capacity now; `retry_after_s` says when to come back."""


class Unavailable(WoodfrogError):
    """The other side cannot be reached now: retry with backoff."""


class DeadlineExceeded(WoodfrogError):
    """Time ran out; it may or may not have happened."""


class DataLoss(WoodfrogError):
    """Bytes do not match their digest: stop, take them from elsewhere."""


class Internal(WoodfrogError):
    """Our own mistake."""

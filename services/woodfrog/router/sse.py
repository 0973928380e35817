"""Server-sent events, as far as OpenAI's streams use them. Pure."""

_EVENT_BYTES_MAX = 4 << 20


class SseReader:
    """Bytes in any cut, payloads of `data` lines out."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Raises ValueError when a line has no end."""
        lines = (self._pending + data).split(b"\n")
        self._pending = lines.pop()
        if len(self._pending) > _EVENT_BYTES_MAX:
            raise ValueError(f"an event is longer than {_EVENT_BYTES_MAX} bytes")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]

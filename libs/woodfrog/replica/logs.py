"""A bounded log in memory: a sandboxed replica has no file that outlives its checkpoint."""

import logging
from collections import deque

LINES_MAX = 500

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogRing(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[str] = deque(maxlen=LINES_MAX)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        fields = {k: v for k, v in vars(record).items() if k not in _STANDARD}
        extra = "".join(f" {key}={value}" for key, value in fields.items())
        self._lines.append(self.format(record) + extra)

    def lines(self, count: int) -> list[str]:
        """The last `count` lines, oldest first."""
        return list(self._lines)[-count:]

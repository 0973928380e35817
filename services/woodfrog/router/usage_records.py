"""What each request used, written once: before its last byte goes to the client, or when it ends in another way."""

from collections.abc import Callable

from woodfrog.clock import Clock
from woodfrog.metering import HOUR_S, Ledger, Row, Usage
from woodfrog.model.rung import Rung
from woodfrog.router.metrics import Metrics
from woodfrog.router.told_tokens import ToldTokens
from woodfrog.telemetry import names


class UsageRecords:
    def __init__(
        self,
        ledger: Ledger,
        metrics: Metrics,
        clock: Clock,
        charge: Callable[[str, int], None] = lambda tenant, tokens: None,
    ) -> None:
        """`charge` is told each tenant's tokens, those read and written, as an answer ends."""
        self._charge = charge
        self._ledger = ledger
        self._metrics = metrics
        self._clock = clock

    def open(self, tenant: str, model: str) -> "UsageRecord":
        return UsageRecord(self, tenant, model)

    def now(self) -> float:
        return self._clock.now()

    def write(self, tenant: str, model: str, usage: Usage) -> None:
        self._ledger.add([Row(int(self._clock.wall() // HOUR_S), tenant, model, usage)])
        self._metrics.used(tenant, usage)
        self._charge(tenant, usage.prompt_tokens + usage.completion_tokens)


class UsageRecord:
    """Of one request."""

    def __init__(self, records: UsageRecords, tenant: str, model: str) -> None:
        self._records = records
        self._tenant = tenant
        self._model = model
        self._told: ToldTokens | None = None
        self._woke = False
        self._slot_since: float | None = None
        self._slot_s = 0.0
        self._written = False
        self.attributes: dict[str, int] = {}  #: for the request's span, once it is written

    def took_slot(self, rung: Rung) -> None:
        """`rung`: where the model was."""
        self._woke = self._woke or rung is not Rung.SERVING
        self._slot_since = self._records.now()

    def gave_slot(self) -> None:
        if self._slot_since is not None:
            self._slot_s += self._records.now() - self._slot_since
            self._slot_since = None

    def began(self, content_type: bytes | None) -> None:
        """The answer's body follows."""
        self._told = ToldTokens(content_type or b"")

    def saw(self, data: bytes, last: bool) -> None:
        """Part of the body, before it goes to the client. `last`: nothing follows it."""
        assert self._told is not None
        if self._told.saw(data) or last:
            self.write()

    def write(self, *, failed: bool = False) -> None:
        """Only the first time."""
        if self._written:
            return
        self._written = True
        self.gave_slot()
        read, written = self._told.tokens() if self._told is not None else (0, 0)
        if read or written:
            self.attributes = {names.GENAI_INPUT_TOKENS: read, names.GENAI_OUTPUT_TOKENS: written}
        usage = Usage(
            requests=1,
            failed=int(failed),
            wakes=int(self._woke),
            prompt_tokens=read,
            completion_tokens=written,
            slot_s=self._slot_s,
        )
        self._records.write(self._tenant, self._model, usage)

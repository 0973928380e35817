"""Why a model last did not start, for people. Known to this life of this scheduler only."""

from dataclasses import dataclass

_MODELS_MAX = 50_000  # then the oldest is forgotten


@dataclass(frozen=True, slots=True)
class Trouble:
    sentence: str
    at: float  # on the scheduler's clock


class Troubles:
    """The last one of each model, until a climb of it succeeds or it is removed."""

    def __init__(self) -> None:
        self._last: dict[str, Trouble] = {}

    def note(self, model: str, sentence: str, now: float) -> None:
        self.forget(model)
        self._last[model] = Trouble(sentence, now)
        if len(self._last) > _MODELS_MAX:
            del self._last[next(iter(self._last))]

    def forget(self, model: str) -> None:
        self._last.pop(model, None)

    def last(self, model: str) -> Trouble | None:
        return self._last.get(model)

"""How long a model's requests hold a slot: by Little's law, from how many run and how many began. Pure."""

from dataclasses import dataclass

HALF_LIFE = 32.0  # requests
ENOUGH = 4.0  # requests, before which nothing is said


@dataclass(slots=True)
class _Sums:
    held_s: float = 0.0
    began: float = 0.0


class ServiceTimes:
    """Decayed means, of each model."""

    def __init__(self) -> None:
        self._of: dict[str, _Sums] = {}

    def began(self, model: str, count: int) -> None:
        """So many requests were given a slot."""
        sums = self._of.setdefault(model, _Sums())
        kept = 0.5 ** (count / HALF_LIFE)
        sums.held_s *= kept
        sums.began = sums.began * kept + count

    def held(self, model: str, slot_seconds: float) -> None:
        """Slots of the model were taken for so long, added up."""
        if slot_seconds > 0:
            self._of.setdefault(model, _Sums()).held_s += slot_seconds

    def mean_s(self, model: str) -> float | None:
        """None where too little is known."""
        sums = self._of.get(model)
        return sums.held_s / sums.began if sums is not None and sums.began >= ENOUGH else None

    def forget(self, model: str) -> None:
        self._of.pop(model, None)

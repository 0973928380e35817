"""What an image engine is asked for."""

from dataclasses import dataclass

STEPS_DEFAULT = 30


@dataclass(frozen=True, slots=True)
class Drawing:
    """One image that is wanted."""

    prompt: str
    size: tuple[int, int]  # width, height
    steps: int = STEPS_DEFAULT
    seed: int | None = None
    guidance: float | None = None  # None: the pipeline's own
    negative: str = ""

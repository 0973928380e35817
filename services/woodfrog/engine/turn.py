"""One answer inside Transformers' `generate`: our sampler chooses its tokens, our transcript says where it ends."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from woodfrog.engine.module_engine import Stop
from woodfrog.engine.request import Piece
from woodfrog.engine.sampling import Sampler
from woodfrog.engine.transcript import Transcript


class Choosing(LogitsProcessor):  # type: ignore[misc]
    """The chosen token's score becomes infinite, so that argmax takes it."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Both with one row; scores in float32. Raises Internal NOT_FINITE."""
        token = self._sampler.choose(scores[0])
        self._sampler.check()
        if token is not None:
            scores[0, token] = torch.inf
        return scores


class Ending(StoppingCriteria):  # type: ignore[misc]
    """Emits a piece for each token; ends with the answer, and before the next token once `stop` is set."""

    def __init__(
        self, transcript: Transcript, sampler: Sampler, emit: Callable[[Piece], None], stop: Stop
    ) -> None:
        self._transcript = transcript
        self._sampler = sampler
        self._emit = emit
        self._stop = stop
        self._seen = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        logprobs = self._sampler.logprobs[self._seen :]
        self._seen += len(logprobs)
        piece = self._transcript.add([int(input_ids[0, -1])], logprobs)
        self._emit(piece)
        return torch.tensor([piece.finish_reason is not None or self._stop.asked])

"""Per-request sampling inside the batching manager, which itself shares one sampler between all requests."""

import math
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
)

from woodfrog.engine.request import Sampling, TokenLogprob
from woodfrog.errors import Internal, InvalidArgument

if TYPE_CHECKING:
    from woodfrog.engine.constraint import Constraint

_LEAST = -9999.0  # OpenAI's log-probability of what cannot be; JSON has no infinity
_NUCLEUS_FIRST = 256  # candidates tried before the whole vocabulary is sorted for top_p


class Sampler:
    """Chooses the tokens of one sequence and keeps what choosing needs: counts, generator, log-probabilities."""

    def __init__(
        self,
        sampling: Sampling,
        prompt: list[int],
        stream: int = 0,
        constraint: "Constraint | None" = None,
    ) -> None:
        """`stream` tells apart the answers to one request, which share its seed; each has a `constraint` of its own."""
        self.logprobs: list[TokenLogprob] = []  # one for each chosen token, if asked for
        self._overflowed = False
        self._sampling = sampling
        self._constraint = constraint
        self._counts: dict[int, int] = {}  # of tokens in the answer
        self._prompt = set(prompt) if sampling.repetition_penalty != 1.0 else set()
        self._plain = sampling.temperature == 0.0 and not (
            sampling.frequency_penalty
            or sampling.presence_penalty
            or sampling.logit_bias
            or sampling.repetition_penalty != 1.0
        )
        self._easy = self._plain and sampling.logprobs is None and constraint is None
        self._generator = torch.Generator()
        if sampling.temperature > 0.0:
            # Without a seed: drawn from the process's generator, which every thaw seeds afresh.
            seed = int(torch.randint(1 << 62, ())) if sampling.seed is None else sampling.seed
            self._generator.manual_seed((seed + stream) % (1 << 63))

    def __deepcopy__(self, memo: Any) -> "Sampler":
        return self  # the manager copies a request's arguments when it starts one over

    def choose(self, logits: torch.Tensor) -> int | None:
        """The next token from `logits` (float32, one for each word); None leaves it to argmax.

        Raises nothing, because others share the step; whoever takes the tokens calls `check`.
        """
        if self._easy and logits.is_cuda:
            return None
        logits = logits.cpu()  # from a GPU half a megabyte; its own launches would take longer
        self._overflowed |= not math.isfinite(float(logits.max()))
        if self._easy or self._overflowed:
            return None
        weights = logits if self._plain else self._adjusted(logits)
        if self._constraint is not None:
            weights = self._constraint.allowed(weights)
        token = int(weights.argmax()) if self._plain else self._draw(weights)
        if self._constraint is not None:
            self._constraint.advance(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        if self._sampling.logprobs is not None:
            self.logprobs.append(_logprob(logits, token, self._sampling.logprobs))
        return token

    def check(self) -> None:
        """Raises Internal NOT_FINITE once it chose from what is no number, InvalidArgument SCHEMA_TOO_COMPLEX."""
        if self._overflowed:
            raise Internal("NOT_FINITE", "the model's numbers overflowed at this request")
        if self._constraint is not None and self._constraint.broken:
            raise InvalidArgument(
                "SCHEMA_TOO_COMPLEX",
                "the answer cannot be kept to its JSON schema; ask with a simpler one",
            )

    def _adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        sampling = self._sampling
        logits = logits.clone()
        if sampling.repetition_penalty != 1.0 and (seen := self._prompt | self._counts.keys()):
            index = torch.tensor(list(seen))
            values = logits[index]
            penalty = sampling.repetition_penalty
            logits[index] = torch.where(values > 0, values / penalty, values * penalty)
        if self._counts and (sampling.frequency_penalty or sampling.presence_penalty):
            counts = torch.tensor(list(self._counts.values()), dtype=torch.float32)
            penalty_of = sampling.frequency_penalty * counts + sampling.presence_penalty
            logits[torch.tensor(list(self._counts))] -= penalty_of
        if sampling.logit_bias:
            bias = torch.tensor(list(sampling.logit_bias.values()), dtype=torch.float32)
            logits[torch.tensor(list(sampling.logit_bias))] += bias
        return logits

    def _draw(self, logits: torch.Tensor) -> int:
        sampling = self._sampling
        if sampling.temperature == 0.0:
            return int(logits.argmax())
        size = logits.numel()
        logits = logits / sampling.temperature
        words = None  # None: all of them, in order
        if 0 < sampling.top_k < logits.numel():
            logits, words = logits.topk(sampling.top_k)
        probabilities = logits.softmax(-1)
        if sampling.top_p < 1.0:
            probabilities, order = _nucleus(probabilities, sampling.top_p)
            words = order if words is None else words[order]
        # What multinomial does, but with noise that belongs to words and not to ranks: a seed gives the same answer
        # also when rounding, which depends on who else is in the batch, swaps two words of equal rank.
        noise = torch.empty(size).exponential_(generator=self._generator)
        drawn = int((probabilities / (noise if words is None else noise[words])).argmax())
        return drawn if words is None else int(words[drawn])


class PerRequestSampling(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Hands each row of a batch to its request's `sampler`, an argument of `add_request`.

    The chosen token's score becomes infinite, so that the manager's argmax takes it.
    """

    supported_kwargs = {"sampler": Sampler}  # noqa: RUF012 - the base class declares it so
    ignored_kwargs = ()

    def __init__(self) -> None:
        self._samplers: list[Sampler] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        self._samplers = [
            request.state.logit_processor_kwargs["sampler"]
            for request in requests_with_new_token
            if "sampler" in request.state.logit_processor_kwargs  # the manager's warm-up has none
        ]
        return torch.zeros(len(self._samplers), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        # Requests whose prompt is not through yet have no sampler here; their rows come last.
        for row, sampler in zip(scores, self._samplers, strict=False):
            token = sampler.choose(row)
            if token is not None:
                row[token] = torch.inf
        return scores


def _nucleus(probabilities: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest entries that together reach `top_p`, and where they were."""
    for count in (_NUCLEUS_FIRST, probabilities.numel()):
        top, order = probabilities.topk(min(count, probabilities.numel()))
        before = top.cumsum(-1) - top
        if float(before[-1]) >= top_p or count >= probabilities.numel():
            break
    kept = max(1, int((before < top_p).sum()))
    return top[:kept], order[:kept]


def _logprob(logits: torch.Tensor, token: int, top_count: int) -> TokenLogprob:
    values = logits.log_softmax(-1).clamp(min=_LEAST)
    top, words = values.topk(top_count)
    return TokenLogprob(
        token, float(values[token]), list(zip(words.tolist(), top.tolist(), strict=True))
    )

"""What a client asked for, checked. Pure values."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from woodfrog.engine.formats import Schema

if TYPE_CHECKING:
    from woodfrog.engine.tools import ToolUse


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose the next token; the defaults leave the model's distribution as it is."""

    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None
    """How many alternatives to report with each token; None reports nothing."""


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    chat: bool
    """Answer in the form of chat completions, else of text completions."""
    prompts: list[list[int]]
    n: int
    """Answers to each prompt."""
    max_tokens: int
    """The same for all prompts: each fits into the context with it."""
    sampling: Sampling
    stops: list[str]
    stream: bool
    include_usage: bool
    ignore_eos: bool
    schema: Schema | None = None
    """What each answer must be; of a call that must be made too."""
    tools: "ToolUse | None" = None
    """What may be called, and how calls are read."""
    echoes: list[str] | None = None
    """Text before each prompt's answers, where that is asked for."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """log P(token) under the model's own distribution, before temperature and penalties."""

    token: int
    logprob: float
    top: list[tuple[int, float]]
    """The likeliest tokens, best first."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more of one answer."""

    text: str
    logprobs: list[TokenLogprob]
    token_count: int
    finish_reason: str | None

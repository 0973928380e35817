"""Answers that a JSON schema allows and no others: at each step, the words that may come next. By llguidance.

It has no thread, no file and no socket. The table of words is made while the model loads, so that clones share it.
Its limits bound what a schema may cost; what they leave open, `formats.excess` bounds.
"""

from pathlib import Path
from typing import Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from woodfrog.engine.formats import Schema, excess
from woodfrog.errors import InvalidArgument

# One way to write a value: with free whitespace a small model may write nothing else.
_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_REASON_CHARACTERS = 300
_LIMITS = LLParserLimits(max_lexer_states=50_000)  # 25 MB of them; by default five times as many


class Grammars:
    def __init__(self, folder: Path, words: int, eos: list[int]) -> None:
        """`words` is the vocabulary's size; `eos`, at least one, end an answer that may end. Blocks for 0.1 s and more."""
        # Slices would make the first mask quicker, by half a millisecond, and the table twice as large.
        self._words = LLTokenizer(
            str(folder / "tokenizer.json"), n_vocab=words, eos_token=eos, slices=[]
        )

    def constraint(self, schema: Schema) -> "Constraint":
        """Blocks for up to a second, and needs a deep stack: see `Schemas`.

        Raises InvalidArgument, with the field that `schema` came in, for one that cannot be followed.
        """
        try:
            if (reason := excess(schema)) is None:
                grammar = (
                    LLMatcher.grammar_from_lark(schema.text)
                    if schema.lark
                    else LLMatcher.grammar_from_json_schema(schema.text, overrides=_STYLE)
                )
                matcher = LLMatcher(self._words, grammar, log_level=0, limits=_LIMITS)
                # Some schemas are found to allow nothing only then.
                first = any(matcher.compute_logit_bias())
                reason = matcher.get_error() or (None if first else "no answer fits it")
        except ValueError as error:
            reason = str(error)
        if reason:
            said = " ".join(reason.partition("<state>")[0].split())[:_REASON_CHARACTERS]
            raise InvalidArgument(
                "INVALID_JSON_SCHEMA",
                f"'{schema.param}' has a schema that cannot be followed: {said}",
                param=schema.param,
            )
        return Constraint(matcher)


class Constraint:
    """Of one answer. Raises nothing: `broken` says that it could not go on, for whoever takes the tokens."""

    def __init__(self, matcher: LLMatcher, original: "Constraint | None" = None) -> None:
        self._matcher = matcher
        self._original = original
        self.broken = False

    def copy(self) -> "Constraint":
        """For another answer with the same schema; before the first word. When it breaks, so does the original."""
        return Constraint(self._matcher.deep_copy(), self._original or self)

    def allowed(self, logits: torch.Tensor) -> torch.Tensor:
        """`logits`, one for each word, with those of words that may not come next at minus infinity."""
        mask = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        allowed = torch.zeros(logits.shape, dtype=torch.bool)
        count = min(len(allowed), len(mask))
        allowed[:count] = mask[:count] != 0
        if self._matcher.is_error() or not bool(allowed.any()):
            self._break()
        return logits if self.broken else logits.masked_fill(~allowed, -torch.inf)

    def advance(self, token: int) -> None:
        if not self.broken and not self._matcher.consume_token(token):
            self._break()

    def _break(self) -> None:
        self.broken = True
        if self._original is not None:
            self._original.broken = True

"""Answers that a JSON schema allows and no others: at each step, the words that may come next. By llguidance.

It has no thread, no file and no socket. The table of words is made while the model loads, so that clones share it.
"""

from pathlib import Path
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer

from woodfrog.engine.request import Schema
from woodfrog.errors import InvalidArgument

# One way to write a value: with free whitespace a small model may write nothing else.
_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_REASON_CHARACTERS = 300


class Grammars:
    def __init__(self, folder: Path, words: int, eos: list[int]) -> None:
        """`words` is the vocabulary's size; `eos`, at least one, end an answer that may end. Blocks for 0.1 s and more."""
        # Slices would make the first mask quicker, by half a millisecond, and the table twice as large.
        self._words = LLTokenizer(
            str(folder / "tokenizer.json"), n_vocab=words, eos_token=eos, slices=[]
        )

    def constraint(self, schema: Schema) -> "Constraint":
        """Raises InvalidArgument, with the field that `schema` came in, for one that cannot be followed."""
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema.text, overrides=_STYLE)
            matcher = LLMatcher(self._words, grammar, log_level=0)
            # Some schemas are found to allow nothing only then.
            first = any(matcher.compute_logit_bias())
            reason = matcher.get_error() or ("" if first else "no answer fits it")
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

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self.broken = False

    def copy(self) -> "Constraint":
        """For another answer to the same request; before the first word."""
        return Constraint(self._matcher.deep_copy())

    def allowed(self, logits: torch.Tensor) -> torch.Tensor:
        """`logits`, one for each word, with those of words that may not come next at minus infinity."""
        mask = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        allowed = torch.zeros(logits.shape, dtype=torch.bool)
        count = min(len(allowed), len(mask))
        allowed[:count] = mask[:count] != 0
        self.broken |= self._matcher.is_error() or not bool(allowed.any())
        return logits if self.broken else logits.masked_fill(~allowed, -torch.inf)

    def advance(self, token: int) -> None:
        if not self.broken:
            self.broken = not self._matcher.consume_token(token)

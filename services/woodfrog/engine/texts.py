"""Texts as rows of a batch: tokens within bounds, and batches that are padded to few lengths.

Those up to `CAPTURED_LENGTH_MAX` tokens are captured graphs on a GPU, made before the first request.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from woodfrog.engine.batches import ROWS, Batch, plan
from woodfrog.errors import Internal, InvalidArgument

if TYPE_CHECKING:
    from woodfrog.engine.graphed import Graphs
    from woodfrog.engine.tokenizer import Tokenizer

TOKENS_MAX = 300_000  # of one request, OpenAI's
LENGTH_MIN = 32  # tokens; longer ones are this times a power of two
CAPTURED_LENGTH_MAX = 512  # with ROWS, 15 shapes: `graphed.SHAPES_MAX` has room for them
BATCH_TOKENS_GPU = ROWS[-1] * CAPTURED_LENGTH_MAX  # bounds the memory of one batch
BATCH_TOKENS_CPU = 2048  # a second or so, after which other requests have their turn
Function = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class TextLimits:
    context_tokens: int
    """Most tokens of a text."""
    vocabulary_size: int

    @staticmethod
    def of(folder: Path, model: Any, context_tokens: int) -> "TextLimits":
        """`context_tokens` as asked for, unless model, tokenizer or sentence-transformers take less."""
        size = model.get_input_embeddings().weight.shape[0]
        return TextLimits(context_of(folder, model, context_tokens), size)

    def tokens(self, inputs: Sequence[str | list[int]], tokenizer: "Tokenizer") -> list[list[int]]:
        """A text that is too long is refused, never cut. Raises InvalidArgument naming `input`."""
        texts = []
        token_count = 0
        for index, given in enumerate(inputs):
            tokens = tokenizer.encode(given) if isinstance(given, str) else given
            if not tokens:
                raise _bad(f"has no token at index {index}")
            if len(tokens) > self.context_tokens:
                raise InvalidArgument(
                    "CONTEXT_LENGTH_EXCEEDED",
                    f"this model's maximum context length is {self.context_tokens} tokens, but the input at"
                    f" index {index} has {len(tokens)}; shorten it",
                    param="input",
                )
            if not 0 <= min(tokens) <= max(tokens) < self.vocabulary_size:
                raise _bad(f"has tokens outside 0 to {self.vocabulary_size - 1}")
            token_count += len(tokens)
            if token_count > TOKENS_MAX:
                raise InvalidArgument(
                    "MAX_TOKENS_PER_REQUEST",
                    f"the inputs have over {TOKENS_MAX} tokens together; send them in several requests",
                    param="input",
                )
            texts.append(tokens)
        return texts


class TextRows:
    """A function of token ids and their mask, each (rows, length), over texts. Only the compute thread calls it."""

    def __init__(
        self,
        function: Function,
        context_tokens: int,
        padding: int,
        device: str,
        graphs: "Graphs | None",
    ) -> None:
        """`function` gives a tensor with one row for each text; `padding` is the token that fills a row up."""
        self._function = function
        self._captured = graphs.of(function) if graphs is not None else None
        self._context_tokens = context_tokens
        self._padding = padding
        self._device = device

    def batches(self, texts: Sequence[list[int]]) -> list[Batch]:
        tokens_max = BATCH_TOKENS_CPU if self._device == "cpu" else BATCH_TOKENS_GPU
        lengths = [padded_length(len(text), self._context_tokens) for text in texts]
        return plan(lengths, tokens_max, padded=self._captured is not None)

    def __call__(self, texts: Sequence[list[int]], batch: Batch) -> Any:
        """One row for each member of `batch`, in the host's memory."""
        import torch

        ids = torch.full((batch.rows, batch.length), self._padding)
        mask = torch.zeros_like(ids)
        mask[:, 0] = 1  # a row without any token would divide by zero
        for row, index in enumerate(batch.members):
            text = texts[index]
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        captured = self._captured if batch.length <= CAPTURED_LENGTH_MAX else None
        function = captured or self._function
        rows = function(ids.to(self._device), mask.to(self._device)).cpu()[: len(batch.members)]
        if not rows.isfinite().all():
            raise Internal("NOT_FINITE", "the model's numbers overflowed at this text")
        return rows

    def alone(self, text: list[int]) -> Any:
        """The row of one text, padded as those of short requests are."""
        length = padded_length(len(text), self._context_tokens)
        return self([text], Batch((0,), 1, length))[0]

    def warm_up(self, text: list[int]) -> None:
        """Computes every shape that is captured, with a short text."""
        lengths = [padded_length(len(text), self._context_tokens)]
        longest = min(self._context_tokens, CAPTURED_LENGTH_MAX)
        while self._captured is not None and lengths[-1] < longest:
            lengths.append(padded_length(lengths[-1] + 1, self._context_tokens))
        rows = ROWS if self._captured is not None else ROWS[:1]
        # The largest first: the others find their memory in its.
        for length in reversed(lengths):
            for count in reversed(rows):
                self([text], Batch((0,), count, length))


def padded_length(token_count: int, context_tokens: int) -> int:
    length = LENGTH_MIN
    while length < token_count:
        length *= 2
    return min(length, context_tokens)


def context_of(folder: Path, model: Any, asked: int) -> int:
    """Most tokens of a text: what is asked for, unless model, tokenizer or sentence-transformers take less."""
    rooms = [
        asked,
        getattr(model.config, "max_position_embeddings", None),
        (read_json(folder / "tokenizer_config.json") or {}).get("model_max_length"),
        (read_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length"),
    ]
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            rooms.append(module.num_embeddings - padding - 1)  # RoBERTa counts from there on
    return min(int(room) for room in rooms if isinstance(room, int | float) and room > 0)


def padding_of(model: Any) -> int:
    return max(0, getattr(model.config, "pad_token_id", None) or 0)


def read_json(path: Path) -> Any:
    """None when there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def _bad(what: str) -> InvalidArgument:
    return InvalidArgument("INVALID_VALUE", f"'input' {what}", param="input")

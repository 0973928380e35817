"""Embeddings: a unit vector for each text, by any of Transformers' models that turns tokens into hidden states.

Texts are computed together, in batches that are padded to few shapes: those up to `CAPTURED_LENGTH_MAX` tokens are captured
graphs on a GPU, made before the first request.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from woodfrog.engine.module_engine import ModuleEngine
from woodfrog.errors import Internal, InvalidArgument

if TYPE_CHECKING:
    from woodfrog.engine.tokenizer import Tokenizer

CANARY_TEXT = "a b c d e f g"
PROBE_TEXT = "a b c"
ROWS = (1, 8, 32)  # texts in a captured batch
LENGTH_MIN = 32  # tokens; longer ones are this times a power of two
CAPTURED_LENGTH_MAX = 512  # with ROWS, 15 shapes: `graphed.SHAPES_MAX` has room for them
BATCH_TOKENS_GPU = ROWS[-1] * CAPTURED_LENGTH_MAX  # bounds the memory of one batch
BATCH_TOKENS_CPU = 2048  # a second or so, after which other requests have their turn
_PADDING_MAX = 3  # a batch has at most so many times the rows that are wanted
_RANKS = 16
T = TypeVar("T")


class Pooling(Enum):
    """Which hidden states make up a text's vector."""

    MEAN = "mean"
    FIRST = "cls"
    LAST = "lasttoken"


_POOLINGS = {pooling.value: pooling for pooling in Pooling}
_POOLINGS |= {
    "cls_token": Pooling.FIRST,
    "mean_tokens": Pooling.MEAN,
}  # sentence-transformers' flags
_MODULES = {"Transformer", "Pooling", "Normalize"}


@dataclass(frozen=True, slots=True)
class Batch:
    texts: tuple[int, ...]  # indices
    rows: int  # at least as many; those beyond are padding
    length: int


class Encoder:
    """Token ids and their mask, each (rows, length) → unit vectors (rows, size) in float32."""

    def __init__(self, model: Any, pooling: Pooling) -> None:
        self._model = model
        self._pooling = pooling

    def __call__(self, ids: Any, mask: Any) -> Any:
        import torch

        hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        match self._pooling:
            case Pooling.MEAN:
                weights = mask[..., None].float()
                pooled = (hidden * weights).sum(1) / weights.sum(1)
            case Pooling.FIRST:
                pooled = hidden[:, 0]
            case Pooling.LAST:
                pooled = hidden[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1]
        return torch.nn.functional.normalize(pooled, dim=1)


class EmbeddingsEngine(ModuleEngine):
    tokenizer: "Tokenizer"
    context_tokens: int
    """Most tokens of a text."""
    vocabulary_size: int
    size: int
    """Numbers of a vector."""

    def build(self) -> None:
        import torch

        from woodfrog.engine import loading
        from woodfrog.engine.brief import first_layers
        from woodfrog.engine.tokenizer import Tokenizer

        folder = self.settings.model
        if self._memory is None:
            model = loading.load_model(folder, generates=False)
        else:
            assert self._weights is not None
            model = loading.load_onto(folder, self._memory, self._weights, generates=False)
        _check(folder, model)
        model.config.use_cache = False
        self.tokenizer = Tokenizer(folder)
        self.context_tokens = context_of(folder, model, self.settings.arguments.context_tokens)
        self.vocabulary_size = model.get_input_embeddings().weight.shape[0]
        self.size = model.config.hidden_size
        pooling = pooling_of(folder, causal(model))
        self._padding = max(0, getattr(model.config, "pad_token_id", None) or 0)
        self._encode: Callable[[Any, Any], Any] = Encoder(model, pooling)
        self._captured = self.graphs.of(self._encode) if self.graphs is not None else None
        shallow = first_layers(model, **loading.without_pooler(type(model)))
        self._encode_briefly = Encoder(shallow, pooling)
        self._canary_text = self.tokenizer.encode(CANARY_TEXT)[: self.context_tokens]
        self._canary_ids = torch.tensor([self._canary_text], device=self.device)

    def warm_up(self) -> None:
        lengths = [self._length(len(self._canary_text))]
        while self._captured is not None and lengths[-1] < min(
            self.context_tokens, CAPTURED_LENGTH_MAX
        ):
            lengths.append(self._length(lengths[-1] + 1))
        rows = ROWS if self._captured is not None else ROWS[:1]
        # The largest first: the others find their memory in its.
        for length in reversed(lengths):
            for count in reversed(rows):
                self._vectors([self._canary_text], Batch((0,), count, length))

    def probe(self) -> dict[str, Any]:
        body = {"model": self.settings.model_name, "input": PROBE_TEXT}
        return {"path": "/v1/embeddings", "body": body}

    def full_canary(self) -> list[int]:
        length = self._length(len(self._canary_text))
        return _ranks(self._vectors([self._canary_text], Batch((0,), 1, length))[0])

    def brief(self) -> list[int]:
        import torch

        mask = torch.ones_like(self._canary_ids)
        return _ranks(self._encode_briefly(self._canary_ids, mask)[0])

    async def embed(
        self, texts: Sequence[list[int]], render: Callable[[list[float]], T]
    ) -> list[T]:
        """Each text's vector, as `render` makes it in the compute thread. Other requests run between batches."""
        rendered: dict[int, T] = {}
        for batch in self._plan([len(text) for text in texts]):

            def work(batch: Batch = batch) -> list[T]:
                return [render(vector.tolist()) for vector in self._vectors(texts, batch)]

            rendered.update(zip(batch.texts, await self.compute(work), strict=True))
        return [rendered[index] for index in range(len(texts))]

    def _plan(self, lengths: list[int]) -> list[Batch]:
        tokens_max = BATCH_TOKENS_CPU if self.device == "cpu" else BATCH_TOKENS_GPU
        return plan(
            [self._length(length) for length in lengths],
            tokens_max,
            padded=self._captured is not None,
        )

    def _length(self, token_count: int) -> int:
        return padded_length(token_count, self.context_tokens)

    def _vectors(self, texts: Sequence[list[int]], batch: Batch) -> Any:
        """One for each text of `batch`, in the host's memory."""
        import torch

        ids = torch.full((batch.rows, batch.length), self._padding)
        mask = torch.zeros_like(ids)
        mask[:, 0] = 1  # a row without any token would divide by zero
        for row, index in enumerate(batch.texts):
            text = texts[index]
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        captured = self._captured if batch.length <= CAPTURED_LENGTH_MAX else None
        encode = captured or self._encode
        vectors = encode(ids.to(self.device), mask.to(self.device))[: len(batch.texts)].cpu()
        if not vectors.isfinite().all():
            raise Internal("NOT_FINITE", "the model's numbers overflowed at this text")
        return vectors


def plan(lengths: Sequence[int], tokens_max: int, *, padded: bool) -> list[Batch]:
    """Batches of texts of the same padded length, with `tokens_max` tokens at most or one row; `padded` to ROWS."""
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    batches = []
    for length, texts in sorted(by_length.items()):
        while texts:
            rows = _rows(len(texts), max(1, tokens_max // length), padded)
            batches.append(Batch(tuple(texts[:rows]), rows, length))
            del texts[:rows]
    return batches


def _rows(count: int, rows_max: int, padded: bool) -> int:
    allowed = [rows for rows in ROWS if rows <= rows_max]
    if not padded:
        return min(count, rows_max, ROWS[-1])
    above = next((rows for rows in allowed if rows >= count), None)
    if above is not None and above <= _PADDING_MAX * count:
        return above
    return max(rows for rows in allowed if rows <= count)


def padded_length(token_count: int, context_tokens: int) -> int:
    length = LENGTH_MIN
    while length < token_count:
        length *= 2
    return min(length, context_tokens)


def pooling_of(folder: Path, decoder: bool) -> Pooling:
    """As sentence-transformers' files in `folder` say; without them the last token of a decoder, the mean else.

    Raises InvalidArgument when the model's vectors are made in another way.
    """
    modules = _read(folder / "modules.json") or []
    kinds = {str(module.get("type")).rpartition(".")[2]: module for module in modules}
    if unknown := kinds.keys() - _MODULES:
        raise InvalidArgument(
            "UNKNOWN_POOLING", f"{folder}/modules.json names {', '.join(sorted(unknown))}, which this engine lacks"
        )  # fmt: skip
    name = Path(str(kinds["Pooling"].get("path"))).name if "Pooling" in kinds else "1_Pooling"
    config = _read(folder / name / "config.json")
    if config is None:
        if "Pooling" in kinds:
            raise InvalidArgument(
                "UNKNOWN_POOLING", f"{folder} lacks {name}/config.json, which modules.json names"
            )
        return Pooling.LAST if decoder else Pooling.MEAN
    named = config.get("pooling_mode")
    modes = [str(named)] if named else [
        key.removeprefix("pooling_mode_")
        for key, on in config.items() if key.startswith("pooling_mode_") and on is True
    ]  # fmt: skip
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise InvalidArgument(
            "UNKNOWN_POOLING", f"{folder}/{name} asks for {' and '.join(modes) or 'nothing'}; known are mean, cls and lasttoken"
        )  # fmt: skip
    return _POOLINGS[modes[0]]


def context_of(folder: Path, model: Any, asked: int) -> int:
    """Most tokens of a text: what is asked for, unless model, tokenizer or sentence-transformers take less."""
    rooms = [
        asked,
        getattr(model.config, "max_position_embeddings", None),
        (_read(folder / "tokenizer_config.json") or {}).get("model_max_length"),
        (_read(folder / "sentence_bert_config.json") or {}).get("max_seq_length"),
    ]
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            rooms.append(module.num_embeddings - padding - 1)  # RoBERTa counts from there on
    return min(int(room) for room in rooms if isinstance(room, int | float) and room > 0)


def causal(model: Any) -> bool:
    """Whether a token sees only those before it."""
    return any(getattr(module, "is_causal", False) for module in model.modules())


def _check(folder: Path, model: Any) -> None:
    if model.config.is_encoder_decoder or model.main_input_name != "input_ids":
        raise InvalidArgument(
            "UNKNOWN_ARCHITECTURE",
            f"{folder} holds a {type(model).__name__}, which does not turn one text into hidden states",
        )


def _ranks(vector: Any) -> list[int]:
    """The same in healthy replicas, also where a kernel rounds its last bit by chance."""
    ranked: list[int] = vector.abs().topk(min(_RANKS, len(vector))).indices.tolist()
    return ranked


def _read(path: Path) -> Any:
    """None when there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None

"""Embeddings: a unit vector for each text, by any of Transformers' models that turns tokens into hidden states.

Texts are computed together, in batches that are padded to few shapes (`texts.py`).
"""

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from woodfrog.engine.batches import Batch
from woodfrog.engine.module_engine import ModuleEngine
from woodfrog.engine.texts import TextLimits, TextRows, padding_of, read_json
from woodfrog.errors import InvalidArgument

if TYPE_CHECKING:
    from woodfrog.engine.tokenizer import Tokenizer

CANARY_TEXT = "a b c d e f g"
PROBE_TEXT = "a b c"
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
    limits: TextLimits
    size: int
    """Numbers of a vector."""

    def build(self) -> None:
        import torch

        from woodfrog.engine import loading
        from woodfrog.engine.brief import first_layers
        from woodfrog.engine.tokenizer import Tokenizer

        folder = self.settings.model
        model = self.transformer(generates=False)
        _check(folder, model)
        model.config.use_cache = False
        self.tokenizer = Tokenizer(folder)
        self.limits = TextLimits.of(folder, model, self.settings.arguments.context_tokens)
        self.size = model.config.hidden_size
        pooling = pooling_of(folder, causal(model))
        self._encode = Encoder(model, pooling)
        self._rows = TextRows(
            self._encode, self.limits.context_tokens, padding_of(model), self.device, self.graphs
        )
        shallow = first_layers(model, **loading.without_pooler(type(model)))
        self._encode_briefly = self.graphed(Encoder(shallow, pooling))
        self._canary_text = self.tokenizer.encode(CANARY_TEXT)[: self.limits.context_tokens]
        self._canary_ids = torch.tensor([self._canary_text], device=self.device)

    def warm_up(self) -> None:
        self._rows.warm_up(self._canary_text)

    def probe(self) -> dict[str, Any]:
        body = {"model": self.settings.model_name, "input": PROBE_TEXT}
        return {"path": "/v1/embeddings", "body": body}

    def full_canary(self) -> list[int]:
        from woodfrog.engine.brief import ranks

        return ranks(self._rows.alone(self._canary_text))

    def brief(self) -> list[int]:
        import torch

        from woodfrog.engine.brief import ranks

        mask = torch.ones_like(self._canary_ids)
        return ranks(self._encode_briefly(self._canary_ids, mask)[0])

    async def embed(
        self, texts: Sequence[list[int]], render: Callable[[list[float]], T]
    ) -> list[T]:
        """Each text's vector, as `render` makes it in the compute thread. Other requests run between batches."""
        rendered: dict[int, T] = {}
        for batch in self._rows.batches(texts):

            def work(batch: Batch = batch) -> list[T]:
                return [render(vector.tolist()) for vector in self._rows(texts, batch)]

            rendered.update(zip(batch.members, await self.compute(work), strict=True))
        return [rendered[index] for index in range(len(texts))]


def pooling_of(folder: Path, decoder: bool) -> Pooling:
    """As sentence-transformers' files in `folder` say; without them the last token of a decoder, the mean else.

    Raises InvalidArgument when the model's vectors are made in another way.
    """
    modules = read_json(folder / "modules.json") or []
    kinds = {str(module.get("type")).rpartition(".")[2]: module for module in modules}
    if unknown := kinds.keys() - _MODULES:
        raise InvalidArgument(
            "UNKNOWN_POOLING", f"{folder}/modules.json names {', '.join(sorted(unknown))}, which this engine lacks"
        )  # fmt: skip
    name = Path(str(kinds["Pooling"].get("path"))).name if "Pooling" in kinds else "1_Pooling"
    config = read_json(folder / name / "config.json")
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


def causal(model: Any) -> bool:
    """Whether a token sees only those before it."""
    return any(getattr(module, "is_causal", False) for module in model.modules())


def _check(folder: Path, model: Any) -> None:
    if model.config.is_encoder_decoder or model.main_input_name != "input_ids":
        raise InvalidArgument(
            "UNKNOWN_ARCHITECTURE",
            f"{folder} holds a {type(model).__name__}, which does not turn one text into hidden states",
        )

"""Classes of texts and of pictures, by Transformers' ...ForSequenceClassification and ...ForImageClassification.

Inputs are computed together in batches of few shapes (`texts.py`, `picture_rows.py`), as the canaries captured graphs on a GPU.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from woodfrog.engine.batches import Batch
from woodfrog.engine.kinds import classifies_pictures
from woodfrog.engine.module_engine import ModuleEngine
from woodfrog.engine.settings import Settings
from woodfrog.engine.texts import TextLimits, TextRows, padding_of
from woodfrog.errors import InvalidArgument
from woodfrog.replica.weights import WeightMemory

if TYPE_CHECKING:
    from woodfrog.engine.picture_rows import PictureRows
    from woodfrog.engine.tokenizer import Tokenizer

CANARY_TEXT = "a b c d e f g"
PROBE_TEXT = "a b c"
CANARY_PICTURE = (  # of 5 by 5 pixels in many colours
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAIAAAACDbGyAAAALklEQVR42mNkYGBgsEEgFn4G"
    "BgYGDThi0YXyAyCIxRvBr2BgWMCSieAvYGBYAADQSAbyNczmigAAAABJRU5ErkJggg=="
)
TEXTS_MAX = 1024
PICTURES_MAX = 32  # of one request: each may take a second to decode
_PADDING_ERROR_MAX = 0.05  # of the largest logit; half precision rounds


class Rows(Protocol):
    """What the model gives for inputs that have been read: one row of logits each, on the host."""

    def batches(self, given: Sequence[Any], /) -> list[Batch]: ...

    def __call__(self, given: Sequence[Any], batch: Batch, /) -> Any: ...

    def alone(self, given: Any, /) -> Any: ...

    def warm_up(self, given: Any, /) -> None: ...


class ClassifierEngine(ModuleEngine):
    labels: list[str]
    inputs_max: int
    """Of one request."""
    probe_input: str
    _rows: Rows
    _canary: Any  # an input that has been read

    def build(self) -> None:
        from woodfrog.engine.brief import first_layers

        folder = self.settings.model
        model = self.transformer(generates=False)
        model.config.use_cache = False
        names = model.config.id2label
        self.labels = [
            str(names.get(index, f"LABEL_{index}")) for index in range(model.config.num_labels)
        ]
        if not self.labels:
            raise InvalidArgument(
                "UNKNOWN_ARCHITECTURE",
                f"{folder}/config.json names no classes; give a model that was trained to classify",
            )
        self._scale = scale_of(model.config)
        self._canary_inputs = self._prepare(model)
        layered = isinstance(getattr(model.config, "num_hidden_layers", None), int)
        shallow = first_layers(model) if layered else model
        self._features = self.graphed(partial(features, model))
        self._brief_features = self.graphed(partial(features, shallow))

    @abstractmethod
    def _prepare(self, model: Any) -> Mapping[str, Any]:
        """Sets `_rows` and `_canary`; returns what the model is called with for the canary."""

    @abstractmethod
    async def read(self, inputs: Sequence[str], params: Sequence[str]) -> tuple[list[Any], int]:
        """What `_rows` takes, and the count of tokens. Raises InvalidArgument naming one of `params`."""

    def warm_up(self) -> None:
        self._rows.warm_up(self._canary)

    def probe(self) -> dict[str, Any]:
        body = {"model": self.settings.model_name, "input": self.probe_input}
        return {"path": "/v1/classify", "body": body}

    def full_canary(self) -> list[int]:
        from woodfrog.engine.brief import ranks

        logits = self._rows.alone(self._canary)
        return [*ranks(logits), *ranks(self._features(**self._canary_inputs))]

    def brief(self) -> list[int]:
        from woodfrog.engine.brief import ranks

        return ranks(self._brief_features(**self._canary_inputs))

    async def classify(
        self, given: Sequence[Any], render: Callable[[list[float]], str]
    ) -> list[str]:
        """Each input's scores, as `render` makes them in the compute thread. Other requests run between batches."""
        rendered: dict[int, str] = {}
        for batch in self._rows.batches(given):

            def work(batch: Batch = batch) -> list[str]:
                return [render(scores) for scores in self._scale(self._rows(given, batch)).tolist()]

            rendered.update(zip(batch.members, await self.compute(work), strict=True))
        return [rendered[index] for index in range(len(given))]


class TextClassifier(ClassifierEngine):
    inputs_max = TEXTS_MAX
    probe_input = PROBE_TEXT
    tokenizer: "Tokenizer"
    limits: TextLimits

    def _prepare(self, model: Any) -> Mapping[str, Any]:
        import torch

        from woodfrog.engine.tokenizer import Tokenizer

        if model.config.is_encoder_decoder or model.main_input_name != "input_ids":
            raise InvalidArgument(
                "UNKNOWN_ARCHITECTURE",
                f"{self.settings.model} holds a {type(model).__name__}, which does not classify by one text's tokens",
            )
        self.tokenizer = Tokenizer(self.settings.model)
        self.limits = TextLimits.of(
            self.settings.model, model, self.settings.arguments.context_tokens
        )
        self._logits = TextLogits(model)
        self._rows = TextRows(
            self._logits, self.limits.context_tokens, padding_of(model), self.device, self.graphs
        )
        self._canary = self.tokenizer.encode(CANARY_TEXT)[: self.limits.context_tokens]
        ids = torch.tensor([self._canary], device=self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    async def read(self, inputs: Sequence[str], params: Sequence[str]) -> tuple[list[Any], int]:
        texts = await self.compute(lambda: self.limits.tokens(inputs, self.tokenizer))
        return texts, sum(map(len, texts))

    def warm_up(self) -> None:
        """Raises InvalidArgument for a model that padding confuses: it would answer wrongly, not fail."""
        super().warm_up()
        padded = self._rows.alone(self._canary)
        alone = self._logits(*self._canary_inputs.values())[0].cpu()
        if (padded - alone).abs().max() > _PADDING_ERROR_MAX * max(1.0, alone.abs().max()):
            raise InvalidArgument(
                "UNKNOWN_ARCHITECTURE",
                f"{self.settings.model}: this model's answers change with what fills a batch up, so it is not served",
            )


class PictureClassifier(ClassifierEngine):
    inputs_max = PICTURES_MAX
    probe_input = CANARY_PICTURE
    _rows: "PictureRows"

    def _prepare(self, model: Any) -> Mapping[str, Any]:
        from woodfrog.engine.picture_rows import PictureRows

        def logits(**inputs: Any) -> Any:
            return model(**inputs).logits.float()

        self._rows = PictureRows(self.settings.model, logits, model.dtype, self.device, self.graphs)
        self._canary = self._rows.read(CANARY_PICTURE, "input")
        return {name: value.to(self.device) for name, value in self._canary.items()}

    async def read(self, inputs: Sequence[str], params: Sequence[str]) -> tuple[list[Any], int]:
        """One at a time, so that other requests have their turns; pictures have no tokens."""
        rows = self._rows
        pairs = zip(inputs, params, strict=True)
        return [await self.compute(partial(rows.read, url, param)) for url, param in pairs], 0


class TextLogits:
    """Token ids and their mask, each (rows, length) → logits (rows, classes) in float32."""

    def __init__(self, model: Any) -> None:
        self._model = model
        padding = getattr(model.config.get_text_config(), "pad_token_id", None)
        # A decoder without such a token would take each row's very last one, whatever fills the row up.
        self._by_mask = hasattr(model, "score") and (padding is None or padding < 0)

    def __call__(self, ids: Any, mask: Any) -> Any:
        import torch

        if not self._by_mask:
            return self._model(input_ids=ids, attention_mask=mask).logits.float()
        hidden = self._model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        rows = torch.arange(len(mask), device=mask.device)
        return self._model.score(hidden[rows, mask.sum(1) - 1]).float()


def engine_of(settings: Settings, weights: WeightMemory | None) -> ClassifierEngine:
    of_pictures = classifies_pictures(settings.model)
    return (PictureClassifier if of_pictures else TextClassifier)(settings, weights)


def features(model: Any, **inputs: Any) -> Any:
    """The last hidden state of one input, as one vector in float32: it tells more than a few classes do.

    The logits of a model that shows none.
    """
    found = model(**inputs, output_hidden_states=True)
    hidden = (found.hidden_states[-1] if found.get("hidden_states") else found.logits).float()
    if hidden.dim() == 4:  # channels first
        hidden = hidden.flatten(2).transpose(1, 2)
    return hidden.reshape(-1, hidden.shape[-1]).mean(0)


def scale_of(config: Any) -> Callable[[Any], Any]:
    """Logits → scores, as `problem_type` says: probabilities, but for a regression, whose numbers are its answers."""
    import torch

    if config.problem_type == "regression":
        return lambda logits: logits
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return lambda logits: torch.sigmoid(logits)
    return partial(torch.softmax, dim=-1)

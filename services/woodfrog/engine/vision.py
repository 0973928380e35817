"""Text from text and images, by any of Transformers' vision-language models whose decoder keeps a KV cache.

Processing, generation and what a model does between its parts are Transformers' own. On a CPU a model runs as it is. On a
GPU its parts run there, as captured graphs, and everything between them on the CPU (`engine/islands.py`).
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from woodfrog.engine.fields import Body
from woodfrog.engine.module_engine import ModuleEngine, Stop
from woodfrog.engine.parse import Limits, chat_request
from woodfrog.engine.pictures import SMALL_SIZE, pattern
from woodfrog.engine.render import fingerprint
from woodfrog.engine.request import GREEDY, GenerationRequest, Piece
from woodfrog.errors import InvalidArgument

if TYPE_CHECKING:
    from woodfrog.engine.processing import Chats
    from woodfrog.engine.sequence_cache import SequenceCache
    from woodfrog.engine.tokenizer import Tokenizer
    from woodfrog.replica.device import DeviceMemory

IMAGES_MAX = 16  # of one request
CANARY_TEXT = "a b c d e f g"
CANARY_TOKENS = 2
_RANKS = 8
_TEXT = {"type": "text", "text": CANARY_TEXT}
_WARM = GenerationRequest(
    chat=True, prompts=[[]], n=1, max_tokens=1, sampling=GREEDY, stops=[], stream=False,
    include_usage=False, ignore_eos=True,
)  # fmt: skip
Emit = Callable[[Piece], None]


class VisionEngine(ModuleEngine):
    tokenizer: "Tokenizer"
    limits: Limits
    _chats: "Chats"
    _cache: "SequenceCache | None" = None  # on a GPU
    _model: Any

    def build(self) -> None:
        import torch
        from transformers import GenerationConfig

        from woodfrog.engine import loading
        from woodfrog.engine.brief import first_layers
        from woodfrog.engine.processing import Chats
        from woodfrog.engine.tokenizer import Tokenizer

        folder = self.settings.model
        model = self.transformer()
        _check(model)
        self._brief_model: Callable[..., Any] = first_layers(model.get_decoder())
        self._chats = Chats(folder)
        self.tokenizer = Tokenizer(folder)
        self._eos = loading.eos_tokens(folder, model)
        text = model.config.get_text_config(decoder=True)
        asked = self.settings.arguments.context_tokens
        self.limits = Limits(
            context_tokens=min(asked, getattr(text, "max_position_embeddings", None) or asked),
            vocabulary_size=model.get_input_embeddings().weight.shape[0],
            sequences=self.settings.arguments.slots,
        )
        if self._memory is not None:
            self._split(model, self._memory)
        model.generation_config = GenerationConfig()  # what is not asked for is not done
        self._model = model
        self._read(_canary_body(self.settings.model_name))  # the context must hold a picture
        self._brief_ids = torch.tensor([self.tokenizer.encode(CANARY_TEXT, special=False)])

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.settings.model_name, self._versions)

    def warm_up(self) -> None:
        """On a GPU prompts of every length, the longest first: what comes later finds its memory in theirs."""
        from woodfrog.engine.sequence_cache import lengths

        if self._cache is not None:
            text = self._chats.inputs([_message([_TEXT])], self.limits.context_tokens)
            for length in reversed(lengths(self.limits.context_tokens)):
                prompt = _of_length(text, length - 1)
                self._generate(_WARM, prompt, 0, lambda piece: None, Stop())

    def probe(self) -> dict[str, Any]:
        return {
            "path": "/v1/chat/completions",
            "body": {**_canary_body(self.settings.model_name), "stream": True},
        }

    def full_canary(self) -> list[int]:
        """The likeliest words after a picture and a text."""
        request, inputs = self._read(_canary_body(self.settings.model_name))
        pieces: list[Piece] = []
        self._generate(request, inputs, 0, pieces.append, Stop())
        entries = [entry for piece in pieces for entry in piece.logprobs]
        return [token for entry in entries for token, _ in entry.top]

    def brief(self) -> list[int]:
        """By the first layers of the decoder."""
        import torch

        from woodfrog.engine.brief import ranks

        ids, mask = self._brief_ids, torch.ones_like(self._brief_ids)
        output = self._brief_model(input_ids=ids, attention_mask=mask, use_cache=False)
        return ranks(output.last_hidden_state[0, -1])

    def answer(
        self,
        body: Body,
        accept: Callable[[GenerationRequest], None],
        emit: Callable[[int, Piece], None],
        stop: Stop,
    ) -> None:
        """Reads the request, gives it to `accept`, then emits pieces of its answers, one after another.

        Blocks until the last one, or the step after `stop`; in the compute thread. Raises InvalidArgument.
        """
        if stop.asked:
            return
        request, inputs = self._read(body)
        accept(request)
        for index in range(request.n):
            if not stop.asked:
                self._generate(request, inputs, index, partial(emit, index), stop)

    def describe(self) -> dict[str, Any]:
        kept = 0 if self._cache is None else self._cache.region.size_bytes
        pool = 0 if self.graphs is None else self.graphs.pool.size_bytes
        return {**super().describe(), "kv_bytes": kept + pool}

    def clear(self) -> None:
        super().clear()
        if self._cache is not None:
            self._cache.region.renew()

    def release(self) -> None:
        if self._cache is not None:
            self._cache.region.release()
        super().release()

    def regain(self) -> None:
        super().regain()
        if self._cache is not None:
            self._cache.region.renew()

    def _read(self, body: Body) -> tuple[GenerationRequest, dict[str, Any]]:
        inputs: dict[str, Any] = {}

        def encode(messages: list[dict[str, Any]]) -> list[int]:
            inputs.update(self._chats.inputs(messages, self.limits.context_tokens))
            tokens: list[int] = inputs["input_ids"][0].tolist()
            return tokens

        request = chat_request(body, self.limits, encode, images_max=IMAGES_MAX)
        return request, inputs

    def _split(self, model: Any, memory: "DeviceMemory") -> None:
        from woodfrog.engine import islands
        from woodfrog.engine.sequence_cache import SequenceCache, cache_tokens

        self._cache = SequenceCache(model, cache_tokens(self.limits.context_tokens), memory)
        islands.split(model, self._cache, self.device, self.graphs)
        self._brief_model = islands.Island(self.graphed(self._brief_model), self.device)

    def _kept(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """With the cache, padded on the left to one of few lengths."""
        import torch

        from woodfrog.engine.sequence_cache import padded_length

        if self._cache is None:
            return inputs
        self._cache.begin()
        ids = inputs["input_ids"]
        padding = padded_length(ids.shape[1], self.limits.context_tokens) - ids.shape[1]
        filled = {"input_ids": self._chats.padding}  # others with zeros: masked, and no image
        padded = {
            name: torch.nn.functional.pad(value, (padding, 0), value=filled.get(name, 0))
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor) and value.shape == ids.shape
        }
        return {**inputs, **padded, "cache": self._cache}

    def _generate(
        self,
        request: GenerationRequest,
        inputs: dict[str, Any],
        index: int,
        emit: Emit,
        stop: Stop,
    ) -> None:
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        from woodfrog.engine.sampling import Sampler
        from woodfrog.engine.transcript import Transcript
        from woodfrog.engine.turn import Choosing, Ending

        sampler = Sampler(request.sampling, request.prompts[0], stream=index)
        eos = () if request.ignore_eos else self._eos
        transcript = Transcript(self.tokenizer.decode, request.stops, eos, request.max_tokens)
        self._model.generate(
            **self._kept(inputs),
            generation_config=GenerationConfig(
                max_new_tokens=request.max_tokens,
                do_sample=False,
                pad_token_id=self._chats.padding,
                disable_compile=True,
            ),
            logits_processor=LogitsProcessorList([Choosing(sampler)]),
            stopping_criteria=StoppingCriteriaList([Ending(transcript, sampler, emit, stop)]),
        )


def _canary_body(model: str) -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": pattern(*SMALL_SIZE)}}
    return {
        "model": model,
        "messages": [_message([image, _TEXT])],
        "max_tokens": CANARY_TOKENS,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": _RANKS,
        "ignore_eos": True,
    }


def _message(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": "user", "content": parts}


def _of_length(inputs: dict[str, Any], length: int) -> dict[str, Any]:
    """Those that have a value for each token, over and over until there are `length`."""
    shape = inputs["input_ids"].shape
    each = {n: v for n, v in inputs.items() if getattr(v, "shape", None) == shape}
    return {n: v.repeat(1, -(-length // shape[1]))[:, :length] for n, v in each.items()}


def _check(model: Any) -> None:
    if model.config.is_encoder_decoder or model.get_encoder("image") is model:
        raise InvalidArgument(
            "UNKNOWN_ARCHITECTURE",
            f"{type(model).__name__} is no model of an image encoder and a decoder with a KV cache of its own",
        )

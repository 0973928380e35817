"""Text from text and images, by any of Transformers' vision-language models whose decoder keeps a KV cache.

Processing, generation and what a model does between its parts are Transformers' own. On a CPU a model runs as it is. On a
GPU its parts run there, as captured graphs, and everything between them on the CPU (`engine/islands.py`).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from woodfrog.engine.module_engine import ModuleEngine, Stop
from woodfrog.engine.parse import Body, Limits, chat_request
from woodfrog.engine.pictures import pattern
from woodfrog.engine.render import fingerprint
from woodfrog.engine.request import GenerationRequest, Piece
from woodfrog.errors import InvalidArgument

if TYPE_CHECKING:
    from woodfrog.engine.processing import Chats
    from woodfrog.engine.tokenizer import Tokenizer

IMAGES_MAX = 16  # of one request
CANARY_TEXT = "a b c d e f g"
CANARY_SIZE = (128, 32)  # few tiles, where a model cuts a picture into tiles
CANARY_TOKENS = 2
_RANKS = 8
Emit = Callable[[Piece], None]


class VisionEngine(ModuleEngine):
    tokenizer: "Tokenizer"
    limits: Limits
    _chats: "Chats"
    _model: Any

    def build(self) -> None:
        import torch
        from transformers import GenerationConfig

        from woodfrog.engine import loading
        from woodfrog.engine.brief import first_layers
        from woodfrog.engine.processing import Chats
        from woodfrog.engine.tokenizer import Tokenizer

        folder = self.settings.model
        if self._memory is None:
            model = loading.load_model(folder)
        else:
            assert self._weights is not None
            model = loading.load_onto(folder, self._memory, self._weights)
        _check(model)
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
        model.generation_config = GenerationConfig()  # what is not asked for is not done
        self._model = model
        self._canary = self._read(_canary_body(self.settings.model_name))
        self._brief_ids = torch.tensor([self.tokenizer.encode(CANARY_TEXT, special=False)])
        self._brief_model: Callable[..., Any] = first_layers(model.get_decoder())

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.settings.model_name, self._versions)

    def warm_up(self) -> None:
        self.full_canary()

    def probe(self) -> dict[str, Any]:
        return {
            "path": "/v1/chat/completions",
            "body": {**_canary_body(self.settings.model_name), "stream": True},
        }

    def full_canary(self) -> list[int]:
        """The likeliest words after a picture and a text."""
        request, inputs = self._canary
        pieces: list[Piece] = []
        self._generate(request, inputs, 0, pieces.append, Stop())
        entries = [entry for piece in pieces for entry in piece.logprobs]
        return [token for entry in entries for token, _ in entry.top]

    def brief(self) -> list[int]:
        """By the first layers of the decoder."""
        hidden = self._brief_model(input_ids=self._brief_ids, use_cache=False).last_hidden_state
        ranked: list[int] = hidden[0, -1].abs().topk(_RANKS).indices.tolist()
        return ranked

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
            self._generate(request, inputs, index, lambda piece, i=index: emit(i, piece), stop)

    def _read(self, body: Body) -> tuple[GenerationRequest, dict[str, Any]]:
        inputs: dict[str, Any] = {}

        def encode(messages: list[dict[str, Any]]) -> list[int]:
            inputs.update(self._chats.inputs(messages, self.limits.context_tokens))
            tokens: list[int] = inputs["input_ids"][0].tolist()
            return tokens

        request = chat_request(body, self.limits, encode, images_max=IMAGES_MAX)
        return request, inputs

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
            **inputs,
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
    parts = [
        {"type": "image_url", "image_url": {"url": pattern(*CANARY_SIZE)}},
        {"type": "text", "text": CANARY_TEXT},
    ]
    return {
        "model": model,
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": CANARY_TOKENS,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": _RANKS,
        "ignore_eos": True,
    }


def _check(model: Any) -> None:
    if model.config.is_encoder_decoder or model.get_encoder("image") is model:
        raise InvalidArgument(
            "UNKNOWN_ARCHITECTURE",
            f"{type(model).__name__} is no model of an image encoder and a decoder with a KV cache of its own",
        )

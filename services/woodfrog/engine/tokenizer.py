"""Tokens, text and the chat template, straight from the model's folder without Transformers' tokenizer classes."""

import json
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer as FastTokenizer

from woodfrog.engine.tool_format import ToolFormat, format_of
from woodfrog.errors import InvalidArgument

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class Tokenizer:
    tool_format: ToolFormat | None
    """How the model writes calls of functions, if it can."""

    def __init__(self, folder: Path) -> None:
        self._fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
        self._fast.no_truncation()  # some files ask for it; a text that is too long is refused, not cut
        self._fast.no_padding()
        config = _json(folder / "tokenizer_config.json")
        self._template_variables = {name: _content(config.get(name)) for name in _SPECIAL_TOKENS}
        source = _template_source(folder, config)
        self._template = _compile(source) if source else None
        self.tool_format = format_of(source)

    @property
    def has_template(self) -> bool:
        return self._template is not None

    @property
    def vocabulary_size(self) -> int:
        return int(self._fast.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """`special` adds what the model wants around a text. Raises InvalidArgument on half a surrogate pair."""
        try:
            text.encode()  # JSON can say what no text holds
        except UnicodeEncodeError:
            raise InvalidArgument("INVALID_TEXT", "the text is not valid Unicode") from None
        return list(self._fast.encode(text, add_special_tokens=special).ids)

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        opening: str = "",
    ) -> list[int]:
        """`opening` is what the answer begins with. Raises InvalidArgument when the model's template refuses."""
        if self._template is None:
            raise InvalidArgument(
                "NO_CHAT_TEMPLATE", "this model has no chat template; use /v1/completions"
            )
        try:
            text = self._template.render(
                messages=messages,
                tools=tools,
                add_generation_prompt=True,
                **self._template_variables,
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise InvalidArgument(
                "MESSAGES_REFUSED",
                f"the model's chat template refuses the messages: {error}",
                param="messages",
            ) from None
        return self.encode(text + opening, special=False)

    def decode(self, tokens: list[int]) -> str:
        """Special tokens leave no text."""
        return str(self._fast.decode(tokens, skip_special_tokens=True))

    def decoder_showing(self, marks: Collection[str]) -> Callable[[list[int]], str]:
        """As `decode`, but `marks` leave text also where they are special tokens."""
        added = self._fast.get_added_tokens_decoder()
        hidden = {n for n, t in added.items() if t.special and t.content not in marks}
        if not any(token.special and token.content in marks for token in added.values()):
            return self.decode
        return lambda tokens: str(
            self._fast.decode([t for t in tokens if t not in hidden], skip_special_tokens=False)
        )

    def bytes_of(self, token: int) -> bytes:
        """The token's own bytes, which need not be whole characters."""
        piece = self._fast.id_to_token(token) or ""
        if self._byte_level and all(char in self._byte_of for char in piece):
            return bytes(self._byte_of[char] for char in piece)
        return str(self._fast.decode([token], skip_special_tokens=False)).encode()

    @cached_property
    def _byte_level(self) -> bool:
        return type(self._fast.decoder).__name__ == "ByteLevel"

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """Byte-level BPE writes printable bytes as themselves and the others from U+0100 on."""
        printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
        others = [byte for byte in range(256) if byte not in printable]
        shown = {byte: byte for byte in printable} | {b: 256 + n for n, b in enumerate(others)}
        return {chr(code): byte for byte, code in shown.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}


def _template_source(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    return template


def _compile(source: str) -> Any:
    """As Transformers does, with all that it gives templates; they come with the model, so they run in its sandbox."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        return _compile_jinja_template(source)
    except TemplateError as error:
        raise InvalidArgument(
            "BAD_CHAT_TEMPLATE", f"the model's chat template cannot be read: {error}; mend it"
        ) from None


def _content(token: Any) -> str:
    """Configs hold special tokens as text or as an object."""
    return str(token.get("content", "")) if isinstance(token, dict) else token or ""

"""From a chat with pictures to a model's inputs, by the processor that Transformers has for it."""

import json
from pathlib import Path
from typing import Any

import jinja2
import transformers

from woodfrog.engine import pictures
from woodfrog.engine.picture_rows import image_processor
from woodfrog.errors import InvalidArgument

_PARTS = ("image_processor", "tokenizer", "video_processor")
_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
_COUNT = "_get_num_multimodal_tokens"  # which not every processor has
_CHARACTERS_PER_TOKEN = 64  # of a text that may fit; more are not even tokenized
_ANY = 1 << 30
_REFUSALS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, StopIteration)


class Chats:
    """Raises InvalidArgument at once when the folder's processor is not one that this engine can use."""

    def __init__(self, folder: Path) -> None:
        self._processor = _processor(folder)
        if not self._processor.chat_template:
            raise InvalidArgument(
                "NO_CHAT_TEMPLATE", f"{folder} has no chat template; add its chat_template.jinja"
            )
        names = ("image_token", "video_token", "audio_token")
        marks = [getattr(self._processor, name, None) for name in names]
        self._marks = [str(mark) for mark in marks if mark]
        self._least = self._least_tokens()

    @property
    def padding(self) -> int:
        """A token for places that nothing looks at."""
        words = self._processor.tokenizer
        taken = words.pad_token_id if words.pad_token_id is not None else words.eos_token_id
        return int(taken or 0)

    def inputs(self, messages: list[dict[str, Any]], tokens_max: int) -> dict[str, Any]:
        """The arguments of `generate`, one row each, on the CPU. `messages` are those of `chat_request`.

        What surely makes more than `tokens_max` tokens is refused before it is processed.
        """
        images: list[Any] = []
        pixels = text_length = 0
        shown = []
        for message in messages:
            parts = []
            for part in message["content"]:
                if part["type"] == "image":
                    image = pictures.decode(
                        part["url"], part["place"], pictures.PIXELS_MAX - pixels
                    )
                    pixels += image.width * image.height
                    images.append(image)
                    parts.append({"type": "image", "image": image})
                else:
                    self._check_text(part["text"])
                    text_length += len(part["text"])
                    parts.append({"type": "text", "text": part["text"]})
            shown.append({"role": message["role"], "content": parts})
        self._check_size(images, text_length, tokens_max)
        try:
            made = self._processor.apply_chat_template(
                shown,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        except (jinja2.TemplateError, *_REFUSALS) as error:
            said = str(error).strip().splitlines() or ["no reason given"]
            raise InvalidArgument(
                "MESSAGES_REFUSED",
                f"the model's chat template or processor refuses the messages: {said[0][:300]}",
                param="messages",
            ) from None
        return dict(made)

    def _check_text(self, text: str) -> None:
        try:
            text.encode()  # JSON can say what no text holds
        except UnicodeEncodeError:
            raise InvalidArgument("INVALID_TEXT", "the text is not valid Unicode") from None
        if found := next((mark for mark in self._marks if mark in text), None):
            raise InvalidArgument(
                "INVALID_TEXT",
                f"the text contains {found}, which stands for a picture in this model; leave it out",
                param="messages",
            )

    def _check_size(self, images: list[Any], text_length: int, tokens_max: int) -> None:
        """Before anything is made of them that takes time and memory."""
        try:
            count = self._tokens(images)
        except _REFUSALS as error:
            raise InvalidArgument(
                "INVALID_VALUE",
                f"the model's processor refuses an image: {str(error)[:300]}",
                param="messages",
            ) from None
        if count > tokens_max or text_length > _CHARACTERS_PER_TOKEN * tokens_max:
            raise InvalidArgument(
                "CONTEXT_LENGTH_EXCEEDED",
                f"this model's maximum context length is {tokens_max} tokens, but the images alone make {count}, with"
                f" {text_length} characters of text; send less, or smaller images",
                param="messages",
            )

    def _tokens(self, images: list[Any]) -> int:
        """Of the images alone; at least so many, where the processor cannot count them."""
        count = getattr(self._processor, _COUNT, None)
        if not images or count is None:
            return self._least * len(images)
        sizes = [[image.height, image.width] for image in images]
        return int(sum(count(image_sizes=sizes).num_image_tokens))

    def _least_tokens(self) -> int:
        """Of a small image."""
        self._least = 0
        text = {"type": "text", "text": "a"}
        image = {
            "type": "image",
            "url": pictures.pattern(*pictures.SMALL_SIZE),
            "place": "the first image",
        }
        alone, both = (
            self.inputs([{"role": "user", "content": parts}], _ANY)["input_ids"].shape[1]
            for parts in ([text], [image, text])
        )
        return max(1, int(both - alone))


def _processor(folder: Path) -> Any:
    """Without what videos need. Raises InvalidArgument."""
    try:
        return _made(folder)
    except (OSError, *_REFUSALS) as error:
        said = str(error).strip().splitlines() or ["no reason given"]
        raise InvalidArgument(
            "UNKNOWN_PROCESSOR",
            f"{folder}: no processor can be made of its files ({type(error).__name__}: {said[0][:200]}); give all of"
            " the model's own",
        ) from None


def _made(folder: Path) -> Any:
    name = next((n for file in _FILES if (n := _read(folder / file).get("processor_class"))), None)
    kind: Any = getattr(transformers, str(name), None)
    known = isinstance(kind, type) and issubclass(kind, transformers.ProcessorMixin)
    if not known or not {"image_processor", "tokenizer"} <= {*kind.get_attributes()} <= {*_PARTS}:
        raise InvalidArgument(
            "UNKNOWN_PROCESSOR",
            f"{folder} names {name or 'no processor'}, which is not one for text and images of Transformers"
            f" {transformers.__version__}; add the model's processor_config.json and preprocessor_config.json",
        )
    parts: dict[str, Any] = {
        "image_processor": lambda: image_processor(folder),
        "tokenizer": lambda: transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        ),
        "video_processor": lambda: None,
    }
    still: Any = type(kind.__name__, (kind,), {"check_argument_for_proper_class": _unchecked})
    described, _ = kind.get_processor_dict(folder, local_files_only=True)
    return still.from_args_and_dict([parts[n]() for n in kind.get_attributes()], described)


def _unchecked(self: Any, name: str, given: Any) -> None:
    """There is no video processor."""


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}

"""Fields of OpenAI's that change nothing here: which are ignored, and which are refused. Pure.

What is ignored has no meaning without OpenAI's own services, or is a hint that an answer need not follow. What would
change the answer, and cannot here, is refused. `README.md` has the whole table.
"""

from typing import Any

from woodfrog.engine.fields import Body, bad, boolean, integer, text, unsupported

_TEXTS = ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
_TIERS = ("auto", "default", "flex", "scale", "priority")
_PAIRS_MAX, _KEY_MAX, _VALUE_MAX = 16, 64, 512  # OpenAI's bounds of metadata


def check_shared(body: Body) -> None:
    """What all routes of text have."""
    for name in _TEXTS:
        text(body, name)
    boolean(body, "store")  # nothing is kept, whatever it says
    if body.get("service_tier") not in (None, *_TIERS):
        bad("service_tier", f"is one of {', '.join(_TIERS)}")
    _metadata(body.get("metadata"))


def check_chat(body: Body) -> None:
    check_shared(body)
    _only(body, "modalities", ["text"])
    _only(body, "reasoning_effort", "none")
    _only(body, "verbosity", "medium")
    for name in ("audio", "web_search_options"):
        if body.get(name) is not None:
            unsupported(name, "is not supported by this model")


def check_completion(body: Body) -> None:
    check_shared(body)
    if body.get("suffix") is not None:
        unsupported("suffix", "is not supported by this model")
    if boolean(body, "echo") and body.get("logprobs") is not None:
        unsupported("echo", "is not supported beside logprobs")
    if integer(body, "best_of", 1, None) not in (None, integer(body, "n", 1, None) or 1):
        unsupported("best_of", "is not supported beyond n")


def _only(body: Body, name: str, taken: Any) -> None:
    if body.get(name) not in (None, taken):
        unsupported(name, f"is not supported by this model beyond {taken!r}")


def _metadata(value: Any) -> None:
    if value is None:
        return
    pairs = value.items() if isinstance(value, dict) else [(None, None)]
    if len(pairs) > _PAIRS_MAX or not all(
        isinstance(key, str)
        and isinstance(entry, str)
        and len(key) <= _KEY_MAX
        and len(entry) <= _VALUE_MAX
        for key, entry in pairs
    ):
        bad(
            "metadata",
            f"is an object of at most {_PAIRS_MAX} texts, keys up to {_KEY_MAX} characters, values up to {_VALUE_MAX}",
        )

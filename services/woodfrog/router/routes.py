"""Which paths go to a replica, and what is said of those that never will. Pure."""

import re
from dataclasses import dataclass
from typing import ClassVar

from woodfrog.router.openai_errors import Refusal

MODELS = "/v1/models"
_PASSED = "/v1/*"  # stands for every such path where clients must not be able to make new names
_OF_V1 = re.compile(r"/v1(/[A-Za-z0-9_-]+){1,4}")
_BESIDE_V1 = frozenset(  # that engines have without /v1
    ("/classify", "/detokenize", "/pooling", "/rerank", "/score", "/tokenize", "/v2/rerank")
)
_STATELESS_RESPONSES = ("/v1/responses/compact", "/v1/responses/input_tokens")
_NO_SOUND = "no engine here takes or makes sound"
_NO_EDITS = "only /v1/images/generations makes pictures"
_NO_ADAPTERS = "models are added with `woodfrog models add`"
_NOTHING_KEPT = "nothing is kept between requests; send all that an answer needs with its request"
_STATEFUL = (
    "assistants", "batches", "chat/completions", "chatkit", "containers", "conversations", "evals", "files", "fine_tuning",
    "organization", "realtime", "responses", "skills", "threads", "uploads", "vector_stores", "videos",
)  # fmt: skip
_REFUSED = {  # by the first one or two names behind /v1
    "audio": _NO_SOUND,
    "images/edits": _NO_EDITS,
    "images/variations": _NO_EDITS,
    "load_lora_adapter": _NO_ADAPTERS,
    "unload_lora_adapter": _NO_ADAPTERS,
    **dict.fromkeys(_STATEFUL, _NOTHING_KEPT),
}


@dataclass(frozen=True, slots=True)
class Route:
    path: str
    operation: str  # gen_ai.operation.name
    streams: bool  # whether comments may come before the answer, when a client asks for server-sent events
    name: str  # for metrics and spans

    CHAT: ClassVar["Route"]
    COMPLETION: ClassVar["Route"]
    RESPONSE: ClassVar["Route"]
    EMBEDDING: ClassVar["Route"]
    IMAGE: ClassVar["Route"]


def _known(path: str, operation: str, *, streams: bool = False) -> Route:
    return Route(path, operation, streams, path)


Route.CHAT = _known("/v1/chat/completions", "chat", streams=True)
Route.COMPLETION = _known("/v1/completions", "text_completion", streams=True)
Route.RESPONSE = _known("/v1/responses", "chat", streams=True)
Route.EMBEDDING = _known("/v1/embeddings", "embeddings")
Route.IMAGE = _known("/v1/images/generations", "generate_content")
_KNOWN = {
    route.path: route
    for route in (
        Route.CHAT,
        Route.COMPLETION,
        Route.RESPONSE,
        Route.EMBEDDING,
        Route.IMAGE,
        _known("/v1/classify", "classify"),
    )
}


def find(path: str) -> Route | None:
    """The route by which POST goes to a replica; None where nothing does.

    An engine's own verbs (sleep, update weights, reset a cache) lie beside /v1 and are not for clients.
    """
    known = _KNOWN.get(path)
    if known is not None:
        return known
    if path == MODELS or path.startswith(MODELS + "/"):
        return None
    if path in _BESIDE_V1 or path in _STATELESS_RESPONSES:
        return Route(path, "passed", False, _PASSED)
    if _OF_V1.fullmatch(path) and _why_refused(path) is None:
        return Route(path, "passed", False, _PASSED)
    return None


def no_route(path: str) -> Refusal:
    """What is answered where `find` finds nothing."""
    why = _why_refused(path)
    if why is not None:
        return Refusal(404, f"{path[:200]} is not served: {why}", "route_not_supported")
    mend = f"; it is /v1{path}: end the base URL with /v1" if f"/v1{path}" in _KNOWN else ""
    return Refusal(404, f"there is no route {path[:200]}{mend}", "route_not_found")


def _why_refused(path: str) -> str | None:
    if not path.startswith("/v1/"):
        return None
    parts = path.split("/")[2:4]
    return _REFUSED.get(parts[0]) or _REFUSED.get("/".join(parts))

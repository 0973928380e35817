"""`woodfrog chat`: one question, or a conversation, over the gateway's own HTTP."""

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator

from woodfrog.errors import InvalidArgument, Unavailable

_TIMEOUT_S = 600
# Small models ramble at the API's default temperature of 1, and need not come to an end.
_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {*map(ord, "\t\n")})
_SAMPLING = {"temperature": 0.2, "top_p": 0.9, "max_tokens": 512}


def ask(base_url: str, model: str, messages: list[dict[str, str]]) -> Iterator[str]:
    """Pieces of the answer, without what a terminal would obey. Raises InvalidArgument with the gateway's words, Unavailable when it cannot be reached."""
    body = {"model": model, "messages": messages, "stream": True, **_SAMPLING}
    request = urllib.request.Request(
        f"{base_url}/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json", **_authorization()},
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            for line in response:
                if line.startswith(b"data: [DONE]"):
                    return
                if not line.startswith(b"data: "):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise Unavailable("ANSWER_BROKEN", event["error"]["message"])
                for choice in event["choices"]:
                    yield (choice["delta"].get("content") or "").translate(_CONTROLS)
        raise Unavailable("ANSWER_CUT", "the answer broke off; ask again")
    except urllib.error.HTTPError as error:
        raise InvalidArgument("REFUSED", _said(error.read())) from None
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(
            "GATEWAY_AWAY",
            f"the gateway at {base_url} cannot be reached ({error}); run: woodfrog up",
        ) from None


def _authorization() -> dict[str, str]:
    key = os.environ.get("WOODFROG_API_KEY", "").strip()
    if not key.isascii() or not key.isprintable():
        raise InvalidArgument(
            "KEY_INVALID", "WOODFROG_API_KEY is no API key; set it to one, or unset it"
        )
    return {"authorization": f"Bearer {key}"} if key else {}


def _said(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"the gateway's answer is not its own: {body[:200]!r}"

"""Asks a gateway by gRPC, typed; for users. Two faces of the same: `Client` blocks, `AsyncClient` is for asyncio.

    with Client("127.0.0.1:7000", api_key="wf-…") as client:
        print(client.chat("smollm2-135m", [("user", "What does a frog do in winter?")], max_tokens=32).text)

All raise the classes of `woodfrog.errors`, with `retry_after_s` where the gateway says when to come back. Leaving an
iteration over pieces early, or its time-out, ends the generation.
"""

from woodfrog.client.asking import AsyncClient, Client
from woodfrog.client.values import Answer, Message, Model, Piece, TokenLogprob, ToolCall

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "Message",
    "Model",
    "Piece",
    "TokenLogprob",
    "ToolCall",
]

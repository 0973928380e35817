"""Both faces. What differs is how a call is made and waited for."""

from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import Any, cast

import grpc

from woodfrog.api.router.v1 import (
    chats_pb2,
    chats_pb2_grpc,
    completions_pb2,
    completions_pb2_grpc,
    embeddings_pb2_grpc,
    images_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
)
from woodfrog.client import values
from woodfrog.client.values import Answer, Messages, Model, Piece, Vector
from woodfrog.errors import cancellation, status

_TIMEOUT_S = 600.0  # what OpenAI's own clients wait
_BYTES_MAX = 64 << 20  # of one answer


class _Stubs:
    def __init__(self, channel: Any, api_key: str) -> None:
        self.chats = chats_pb2_grpc.ChatsStub(channel)  # type: ignore[no-untyped-call]
        self.completions = completions_pb2_grpc.CompletionsStub(channel)  # type: ignore[no-untyped-call]
        self.embeddings = embeddings_pb2_grpc.EmbeddingsStub(channel)  # type: ignore[no-untyped-call]
        self.images = images_pb2_grpc.ImagesStub(channel)  # type: ignore[no-untyped-call]
        self.models = models_pb2_grpc.ModelsStub(channel)  # type: ignore[no-untyped-call]
        self.metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()


def _options() -> list[tuple[str, Any]]:
    return [("grpc.max_receive_message_length", _BYTES_MAX)]


class Client:
    """`timeout_s` of each call is for the whole answer, a climb before it too."""

    def __init__(
        self, address: str, api_key: str = "", *, timeout_s: float = _TIMEOUT_S, tls: bool = False
    ) -> None:
        """`address` is host:port of the gateway's gRPC; `tls` trusts the machine's certificate authorities."""
        credentials = grpc.ssl_channel_credentials()
        self._channel = (
            grpc.secure_channel(address, credentials, _options())
            if tls
            else grpc.insecure_channel(address, _options())
        )
        self._stubs = _Stubs(self._channel, api_key)
        self._timeout_s = timeout_s

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def models(self) -> tuple[Model, ...]:
        """By name."""
        call = self._stubs.models.ListModels
        return values.models(self._ask(call, models_pb2.ListModelsRequest()))

    def chat(
        self, model: str, messages: Messages, *, stop: Sequence[str] = (), **fields: Any
    ) -> Answer:
        """`fields`: max_tokens, temperature, top_p, seed, and any other of OpenAI's (tools, response_format, …)."""
        chat = values.chat_request(model, messages, stop, fields)
        request = chats_pb2.CreateRequest(chat=chat)
        return values.chat_answer(self._ask(self._stubs.chats.Create, request))

    def chat_pieces(
        self, model: str, messages: Messages, *, stop: Sequence[str] = (), **fields: Any
    ) -> Iterator[Piece]:
        chat = values.chat_request(model, messages, stop, fields)
        request = chats_pb2.StreamRequest(chat=chat)
        for message in self._listen(self._stubs.chats.Stream, request):
            yield values.chat_piece(message)

    def complete(self, model: str, prompt: str, **fields: Any) -> Answer:
        """`fields`: max_tokens, temperature, and any other of OpenAI's."""
        asked = values.completion_request(model, prompt, fields)
        request = completions_pb2.CompleteRequest(completion=asked)
        return values.completion_answer(self._ask(self._stubs.completions.Complete, request))

    def complete_pieces(self, model: str, prompt: str, **fields: Any) -> Iterator[Piece]:
        asked = values.completion_request(model, prompt, fields)
        request = completions_pb2.StreamCompleteRequest(completion=asked)
        for message in self._listen(self._stubs.completions.StreamComplete, request):
            yield values.completion_piece(message)

    def embed(self, model: str, inputs: Sequence[str], **fields: Any) -> tuple[Vector, ...]:
        """A vector for each text. `fields`: dimensions, and any other of OpenAI's."""
        request = values.embed_request(model, inputs, fields)
        return values.vectors(self._ask(self._stubs.embeddings.Embed, request))

    def images(self, model: str, prompt: str, **fields: Any) -> tuple[bytes, ...]:
        """Files, PNG unless another format is asked for. `fields`: n, size, and any other of OpenAI's."""
        request = values.generate_request(model, prompt, fields)
        return tuple(self._ask(self._stubs.images.Generate, request).images)

    def _ask(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout_s, metadata=self._stubs.metadata)
        except grpc.RpcError as error:
            raise status.from_rpc_error(cast(Any, error), _target(request)) from None

    def _listen(self, method: Any, request: Any) -> Iterator[Any]:
        call = method(request, timeout=self._timeout_s, metadata=self._stubs.metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise status.from_rpc_error(cast(Any, error), _target(request)) from None
        finally:
            call.cancel()


class AsyncClient:
    """As `Client`."""

    def __init__(
        self, address: str, api_key: str = "", *, timeout_s: float = _TIMEOUT_S, tls: bool = False
    ) -> None:
        credentials = grpc.ssl_channel_credentials()
        self._channel = (
            grpc.aio.secure_channel(address, credentials, _options())
            if tls
            else grpc.aio.insecure_channel(address, _options())
        )
        self._stubs = _Stubs(self._channel, api_key)
        self._timeout_s = timeout_s

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close(None)

    async def models(self) -> tuple[Model, ...]:
        call = self._stubs.models.ListModels
        return values.models(await self._ask(call, models_pb2.ListModelsRequest()))

    async def chat(
        self, model: str, messages: Messages, *, stop: Sequence[str] = (), **fields: Any
    ) -> Answer:
        chat = values.chat_request(model, messages, stop, fields)
        request = chats_pb2.CreateRequest(chat=chat)
        return values.chat_answer(await self._ask(self._stubs.chats.Create, request))

    async def chat_pieces(
        self, model: str, messages: Messages, *, stop: Sequence[str] = (), **fields: Any
    ) -> AsyncIterator[Piece]:
        chat = values.chat_request(model, messages, stop, fields)
        request = chats_pb2.StreamRequest(chat=chat)
        async for message in self._listen(self._stubs.chats.Stream, request):
            yield values.chat_piece(message)

    async def complete(self, model: str, prompt: str, **fields: Any) -> Answer:
        asked = values.completion_request(model, prompt, fields)
        request = completions_pb2.CompleteRequest(completion=asked)
        return values.completion_answer(await self._ask(self._stubs.completions.Complete, request))

    async def complete_pieces(self, model: str, prompt: str, **fields: Any) -> AsyncIterator[Piece]:
        asked = values.completion_request(model, prompt, fields)
        request = completions_pb2.StreamCompleteRequest(completion=asked)
        async for message in self._listen(self._stubs.completions.StreamComplete, request):
            yield values.completion_piece(message)

    async def embed(self, model: str, inputs: Sequence[str], **fields: Any) -> tuple[Vector, ...]:
        request = values.embed_request(model, inputs, fields)
        return values.vectors(await self._ask(self._stubs.embeddings.Embed, request))

    async def images(self, model: str, prompt: str, **fields: Any) -> tuple[bytes, ...]:
        request = values.generate_request(model, prompt, fields)
        return tuple((await self._ask(self._stubs.images.Generate, request)).images)

    async def _ask(self, method: Any, request: Any) -> Any:
        try:
            with cancellation.kept():
                return await method(request, timeout=self._timeout_s, metadata=self._stubs.metadata)
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error, _target(request)) from None

    async def _listen(self, method: Any, request: Any) -> AsyncIterator[Any]:
        call = method(request, timeout=self._timeout_s, metadata=self._stubs.metadata)
        try:
            messages = aiter(call)
            while (message := await cancellation.following(messages)) is not None:
                yield message
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error, _target(request)) from None
        finally:
            call.cancel()


def _target(request: Any) -> str:
    """Names the peer, and what was asked of it, where it said nothing itself."""
    return f"woodfrog.api.router.v1/{request.DESCRIPTOR.name.removesuffix('Request')}"

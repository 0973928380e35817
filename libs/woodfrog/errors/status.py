"""WoodfrogError over gRPC: one google.rpc.Status with exactly one ErrorInfo, and RetryInfo where it helps."""

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from woodfrog import errors

DOMAIN = "woodfrog"
UNREACHABLE = "RPC_UNAVAILABLE"  # the reason when the peer itself could not answer
_CLASSES: dict[type[errors.WoodfrogError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.DataLoss: grpc.StatusCode.DATA_LOSS,
    errors.Internal: grpc.StatusCode.INTERNAL,
}
_CODES = {code: cls for cls, code in _CLASSES.items()}


def code_of(error: errors.WoodfrogError) -> grpc.StatusCode:
    return _CLASSES[type(error)]


def to_status(error: errors.WoodfrogError) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details = [_pack(info)]
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    code = code_pb2.Code.Value(code_of(error).name)
    return status_pb2.Status(code=code, message=error.message, details=details)


def from_rpc_error(error: grpc.aio.AioRpcError, target: str) -> errors.WoodfrogError:
    """The same class again. What did not come from our servers' handlers (a dead peer, a deadline) is named after `target`."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    retry_after_s: float | None = None
    for detail in status.details if status else ():
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    code = error.code()
    if (
        code is grpc.StatusCode.CANCELLED
    ):  # by the other side: it is ending; our own cancelling is CancelledError
        code = grpc.StatusCode.UNAVAILABLE
    cls = _CODES.get(code, errors.Internal)
    if not info.reason:
        return cls(f"RPC_{code.name}", _sentence(code, error, target), target=target)
    result = cls(info.reason, status.message if status else "", retry_after_s=retry_after_s)
    result.metadata = dict(info.metadata)
    return result


def _sentence(code: grpc.StatusCode, error: grpc.aio.AioRpcError, target: str) -> str:
    """Of a peer's that said nothing of its own: gRPC's text, unless all that it says is that nobody answers."""
    package, _, method = target.rpartition("/")
    peer = package.split(".")[2] if package.startswith("woodfrog.api.") else target
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"the {peer} does not answer ({method}); it may be starting again: see its log, try again"
    return f"call to {target} failed: {error.code().name}: {error.details()}"


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed

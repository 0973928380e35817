"""What a caller is told when it gets no replica. Pure."""

from woodfrog import errors
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.candidates import FULL
from woodfrog.scheduler.events import Refusal, Refuse
from woodfrog.scheduler.policy import LASTING, NoCapacity

_PASSING = {FULL, "refusing"}
_CLASSES: dict[Refusal, type[errors.WoodfrogError]] = {
    Refusal.NOT_FOUND: errors.NotFound,
    Refusal.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    Refusal.FAILED_PRECONDITION: errors.FailedPrecondition,
    Refusal.UNAVAILABLE: errors.Unavailable,
    Refusal.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
}


def error(refuse: Refuse) -> errors.WoodfrogError:
    """To be raised by the call that is refused."""
    cls = _CLASSES[refuse.refusal]
    return cls(refuse.reason, refuse.message, retry_after_s=refuse.retry_after_s)


def no_capacity(
    spec: ModelSpec, found: NoCapacity, retry_after_s: float
) -> tuple[Refusal, str, str, float | None]:
    """Class, reason, one sentence, and after how many seconds to try again; None: time will not mend it."""
    if found.lasting:
        larger = "node with a larger GPU" if spec.gpu_bytes else "larger node"
        mend = f"add the model with less memory, or a {larger}"
        if {*found.misfits} == {"for other models"}:
            mend = f"add a node for {'tenant ' + repr(spec.tenant) if spec.tenant else 'everybody'}"
        told = _sentence(spec, found, mend)
        return Refusal.FAILED_PRECONDITION, "NO_NODE_FITS", told, None
    mend = f"try again in {retry_after_s:g} s, or add a node"
    if {*found.misfits}.difference(LASTING) == {"draining"}:
        mend = "let one take replicas again with: woodfrog nodes undrain NAME"
    told = _sentence(spec, found, mend)
    return Refusal.RESOURCE_EXHAUSTED, "NO_CAPACITY", told, retry_after_s


def standing(spec: ModelSpec, found: NoCapacity) -> str | None:
    """One sentence where a climb has no hope as things stand; None where others may make room."""
    if found.misfits.keys() & _PASSING:
        return None
    _, _, told, _ = no_capacity(spec, found, 1.0)
    return told


def _sentence(spec: ModelSpec, found: NoCapacity, mend: str) -> str:
    needed = f"{spec.memory_bytes / (1 << 30):.1f} GiB"
    if spec.gpu_bytes:
        gpu_bytes = spec.gpu_bytes + spec.weights_bytes
        needed += f" and {gpu_bytes / (1 << 30):.1f} GiB of one GPU"
    return f"model {spec.name!r} needs {needed} and no node has room ({found.sentence}); {mend}"

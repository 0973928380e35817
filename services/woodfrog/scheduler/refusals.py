"""What a caller is told when no node has room. Pure."""

from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.policy import NoCapacity


def no_capacity(
    spec: ModelSpec, found: NoCapacity, retry_after_s: float
) -> tuple[str, float | None]:
    """One sentence, and after how many seconds to try again; None: time will not mend it."""
    retry_s: float | None = retry_after_s
    mend = f"try again in {retry_s:g} s, or add a node"
    if {*found.misfits} == {"draining"}:
        mend = "let one take replicas again with: woodfrog nodes undrain NAME"
    if found.lasting:
        larger = "node with a larger GPU" if spec.gpu_bytes else "larger node"
        retry_s, mend = None, f"add the model with less memory, or a {larger}"
    needed = f"{spec.memory_bytes / (1 << 30):.1f} GiB"
    if spec.gpu_bytes:
        gpu_bytes = spec.gpu_bytes + spec.weights_bytes
        needed += f" and {gpu_bytes / (1 << 30):.1f} GiB of one GPU"
    return (
        f"model {spec.name!r} needs {needed} and no node has room ({found.sentence}); {mend}",
        retry_s,
    )

import ctypes
from types import SimpleNamespace

import pytest

from woodfrog.node_agent.cuda.driver import CudaError, restore_args

OLD, NEW = "GPU-00112233-4455-6677-8899-aabbccddeeff", "GPU-ffeeddcc-bbaa-9988-7766-554433221100"


class Uuid:
    """As cuda-python's: `bytes` can be read only."""

    def __init__(self) -> None:
        self._raw = ctypes.create_string_buffer(16)

    @property
    def bytes(self) -> bytes:
        return self._raw.raw

    def getPtr(self) -> int:
        return ctypes.addressof(self._raw)


class Args:
    __slots__ = ("gpuPairs", "gpuPairsCount")


class ArgsOfCuda12:
    __slots__ = ()


CUDA = {"CUuuid": Uuid, "CUcheckpointRestoreArgs": Args, "CUcheckpointGpuPair": SimpleNamespace}


def test_a_gpu_moves_to_another() -> None:
    args = restore_args(SimpleNamespace(**CUDA), {OLD: NEW})
    (pair,) = args.gpuPairs
    assert args.gpuPairsCount == 1
    assert pair.oldUuid.bytes == bytes.fromhex("00112233445566778899aabbccddeeff")
    assert pair.newUuid.bytes == bytes.fromhex("ffeeddccbbaa99887766554433221100")


@pytest.mark.parametrize("gpu", ["", "GPU-", "GPU-7", "MIG-" + OLD[4:], OLD[4:]])
def test_what_is_no_gpu_is_refused(gpu: str) -> None:
    with pytest.raises(CudaError, match="is not the uuid of a GPU"):
        restore_args(SimpleNamespace(**CUDA), {OLD: gpu})


@pytest.mark.parametrize("lacking", ["CUcheckpointGpuPair", "gpuPairs"])
def test_an_older_cuda_python_says_so(lacking: str) -> None:
    older = {**CUDA, "CUcheckpointRestoreArgs": ArgsOfCuda12}
    if lacking in older:
        older.pop(lacking)
    with pytest.raises(CudaError, match="cannot restore to another GPU; install 13 or newer"):
        restore_args(SimpleNamespace(**older), {OLD: NEW})

import json
from dataclasses import replace
from typing import Any

import pytest

from woodfrog.model.snapshot import Fingerprint, SnapshotPointer
from woodfrog.model.spec import ModelSpec

SHA = "sha256:" + "ab" * 32
SPEC = ModelSpec("org/name", SHA, 5, engine_args={"context_tokens": 9})
SECONDS = ("park_after_s", "freeze_after_s", "keep_hot_s", "deadline_s", "create_time")
PRINT = Fingerprint({"kernel": "6"}, {"torch": "2"}, SHA)
POINTER = SnapshotPointer("m", SHA, PRINT, 7, 1.5, "GPU-1")


def test_both_survive_their_encoding() -> None:
    assert ModelSpec.decode(SPEC.encode()) == SPEC
    assert SnapshotPointer.decode(POINTER.encode()) == POINTER


@pytest.mark.parametrize("gpu_bytes", [0, 64 << 20, 1 << 50])
def test_gpu_memory_within_its_bounds_survives(gpu_bytes: int) -> None:
    spec = ModelSpec("org/name", SHA, 5, gpu_bytes=gpu_bytes)
    assert ModelSpec.decode(spec.encode()).gpu_bytes == gpu_bytes


def test_a_spec_from_before_there_were_gpus_runs_on_the_cpu() -> None:
    value = json.loads(SPEC.encode())
    del value["gpu_bytes"]
    assert ModelSpec.decode(json.dumps(value).encode()) == SPEC


def test_a_spec_from_before_there_were_priorities_is_like_all_others() -> None:
    value = json.loads(SPEC.encode())
    del value["priority"], value["keep_hot_s"], value["replicas_min"], value["deadline_s"]
    assert ModelSpec.decode(json.dumps(value).encode()) == SPEC


def test_a_pointer_from_before_they_named_a_gpu_names_none() -> None:
    value = json.loads(POINTER.encode())
    del value["gpu"]
    assert SnapshotPointer.decode(json.dumps(value).encode()) == replace(POINTER, gpu="")


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""}, {"name": "a b"}, {"name": "../x"}, {"name": "a/b/c"}, {"name": 7}, {"weights": "x"},
        {"weights_bytes": "x"}, {"slots": 0}, {"slots": True}, {"replicas_max": 0}, {"snapshot": "maybe"},
        {"gpu_bytes": -1}, {"gpu_bytes": (64 << 20) - 1}, {"gpu_bytes": (1 << 50) + 1}, {"gpu_bytes": "x"},
        {"park_after_s": 9, "freeze_after_s": 8}, {"keep_hot_s": -1}, {"keep_hot_s": 1e9}, {"keep_hot_s": None},
        {"freeze_after_s": 90, "keep_hot_s": 91}, {"priority": 0}, {"priority": 101}, {"priority": "high"},
        {"priority": float("nan")}, {"keep_hot_s": float("nan")}, {"engine_args": []}, {"unknown": 1}, {"format": 99},
        {"replicas_min": -1}, {"replicas_min": 2, "replicas_max": 1}, {"replicas_min": None}, {"replicas_min": 0.5},
        *({name: value} for name in SECONDS for value in (float("inf"), float("-inf"), float("nan"), -(10**400), 10**400)),
        {"weights_bytes": -1}, {"weights_bytes": 1 << 63}, {"priority": float("inf")},
        {"deadline_s": 0}, {"deadline_s": -1}, {"deadline_s": 1e9}, {"deadline_s": float("nan")}, {"deadline_s": "1"},
    ],
)  # fmt: skip
def test_a_spec_that_cannot_be_is_refused_with_one_sentence(change: dict[str, Any]) -> None:
    value = {**json.loads(SPEC.encode()), **change}
    with pytest.raises(ValueError) as caught:
        ModelSpec.decode(json.dumps(value).encode())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"7", b"{}", b"\xff"])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        ModelSpec.decode(data)
    with pytest.raises(ValueError):
        SnapshotPointer.decode(data)


@pytest.mark.parametrize(
    "change", [{"manifest": "x"}, {"size_bytes": "x"}, {"fingerprint": {}}, {"fingerprint": 7}, {"model": None}, {"gpu": 7},
        {"size_bytes": -1}, {"size_bytes": float("inf")}, {"size_bytes": 1 << 63},
        {"create_time": float("nan")}, {"create_time": float("inf")}]
)  # fmt: skip
def test_a_pointer_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        SnapshotPointer.decode(json.dumps({**json.loads(POINTER.encode()), **change}).encode())


def test_a_mismatch_names_what_differs() -> None:
    other = Fingerprint({"kernel": "7"}, {"torch": "2"}, SHA)
    assert PRINT.mismatch(PRINT) is None
    assert PRINT.mismatch(other) == "node kernel is '7', the snapshot has '6'"
    assert PRINT.digest != other.digest

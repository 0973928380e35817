import json
import sys
from pathlib import Path

import pytest
import torch
from loadtest import weights_path
from loadtest.weights_path import FLOOR, LOADERS, Result, arguments, load_once, show, weight_bytes
from safetensors.torch import save_file

ABSENT = {"fastsafetensors": "fastsafetensors", "runai streamer": "runai_model_streamer"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of 4,000 and 2,000 bytes of weights."""
    save_file({"a": torch.rand(10, 100), "b": torch.empty(0)}, tmp_path / "model-1.safetensors")
    save_file({"c": torch.rand(500)}, tmp_path / "model-2.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_arguments_have_their_defaults(folder: Path) -> None:
    args = arguments().parse_args([str(folder)])
    assert (args.folder, args.repeat, args.json, args.device) == (folder, 3, None, "cuda:0")
    args = arguments().parse_args([str(folder), "--repeat", "5", "--json", "out.json"])
    assert (args.repeat, args.json) == (5, Path("out.json"))
    with pytest.raises(SystemExit):
        arguments().parse_args([str(folder), "--load", "no such loader"])


def test_bytes_are_those_of_the_tensors(folder: Path, tmp_path: Path) -> None:
    assert weight_bytes(weights_path.weight_files(folder)) == 6000
    with pytest.raises(FileNotFoundError, match="has no"):
        weights_path.weight_files(folder / "unet")


@pytest.mark.parametrize("loader", ["safetensors safe_open", "safetensors load_file"])
def test_a_loader_brings_all_bytes(loader: str, folder: Path) -> None:
    result = load_once(loader, folder, "cpu")
    assert result.loader == loader
    assert len(result.seconds) == 1
    assert result.seconds[0] > 0
    assert result.version
    assert not result.skipped


@pytest.mark.parametrize("loader", ABSENT)
def test_a_loader_whose_package_is_absent_is_skipped(
    loader: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, ABSENT[loader], None)
    result = load_once(loader, folder, "cpu")
    assert result.seconds == ()
    assert ABSENT[loader] in result.skipped
    assert "Error" in result.skipped


@pytest.mark.parametrize("fault", ["lost", "changed"])
def test_a_loader_that_loads_something_else_is_found_out(fault: str, folder: Path) -> None:
    files = weights_path.weight_files(folder)
    loaded = [
        (name, tensor) for name, tensor in LOADERS["safetensors load_file"].ready()(files, "cpu")
    ]
    weights_path._prove(files, loaded, "cpu")
    if fault == "lost":
        loaded.pop()
    else:
        loaded = [(name, tensor + 1) for name, tensor in loaded]
    with pytest.raises(AssertionError):
        weights_path._prove(files, loaded, "cpu")


def test_each_load_is_a_process_of_its_own_and_one_that_fails_is_a_reason(folder: Path) -> None:
    good = weights_path._child("safetensors load_file", folder, "cpu")
    assert len(good.seconds) == 1
    (folder / "model-2.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{]")
    bad = weights_path._child("safetensors load_file", folder, "cpu")
    assert bad.seconds == ()
    assert bad.skipped.startswith("failed with 1: ")


def test_the_table_compares_with_the_floor_and_says_what_was_skipped() -> None:
    results = [
        Result(FLOOR, (0.4, 0.5, 0.6), "2.11"),
        Result("one", (2.0, 1.0, 1.5), "0.8"),
        Result("two", skipped="ImportError: no module two"),
    ]
    head, floor, one, two = show(results, 15_000_000_000).splitlines()
    assert head.split()[:4] == ["LOADER", "VERSION", "N", "MEDIAN"]
    assert floor.split() == [*FLOOR.split(), "2.11", "3", "0.500", "30.00", "1.00", "×"]
    assert one.split() == ["one", "0.8", "3", "1.500", "10.00", "3.00", "×"]
    assert two.split() == ["two", "-", "0", "-", "-", "-", "ImportError:", "no", "module", "two"]


def test_without_a_floor_nothing_is_compared() -> None:
    line = show([Result("one", (2.0,), "0.8")], 4_000_000_000).splitlines()[1]
    assert line.split() == ["one", "0.8", "1", "2.000", "2.00", "-"]


def test_the_file_has_figures_floor_and_reasons(folder: Path) -> None:
    results = [
        Result(FLOOR, (0.5,)),
        Result("one", (1.0, 3.0), "0.8"),
        Result("two", skipped="why"),
    ]
    value = json.loads(json.dumps(weights_path.value(folder, results, 6000)))
    assert (value["bench"], value["size_bytes"], value["skipped"]) == (
        "weights_path",
        6000,
        {"two": "why"},
    )
    assert value["loaders"] == {"one": "0.8"}
    rows = {(row["case"], row["metric"]): row for row in value["rows"]}
    assert set(rows) == {
        (FLOOR, "load_bytes_per_s"),
        ("one", "load_s"),
        ("one", "load_bytes_per_s"),
    }
    assert rows["one", "load_s"]["median"] == 2.0
    assert rows["one", "load_s"]["floor"] == 0.5
    assert rows[FLOOR, "load_bytes_per_s"]["median"] == 12000


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_every_loader_says_so(folder: Path) -> None:
    assert load_once(FLOOR, folder, "cuda:0").skipped == "CUDA is not there"
    assert load_once("safetensors load_file", folder, "cuda:0").skipped == "CUDA is not there"

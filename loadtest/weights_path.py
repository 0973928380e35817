"""How fast published loaders bring one folder's weights into GPU memory, beside the rate of the copy itself.

    python -m loadtest.weights_path FOLDER [--repeat 3] [--json OUT]

Each load is a process of its own, with the files in the page cache. The clock runs from the loader's first call, after
imports and the start of CUDA, until `torch.cuda.synchronize()` with every tensor on the device. The floor is copying as
many bytes from a pinned buffer of 1 GiB. The weights are the folder's own `*.safetensors`; of a pipeline's folder name
one part. A loader whose package is absent is skipped, and the reason is kept.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from loadtest.report import Bench
from woodfrog.cli import options
from woodfrog.cli.show import table

FLOOR = "pinned copy"
_FLOOR_NOTE = "copying as many bytes from pinned memory of the host"
_PINNED_BYTES = 1 << 30
_READ_BYTES = 16 << 20
_LOAD_S_MAX = 600.0
_ROOT = Path(__file__).resolve().parent.parent
_HEADER = ("LOADER", "VERSION", "N", "MEDIAN S", "GB/S", "OF FLOOR", "NOTE")

Loaded = list[tuple[str, Any]]  # tensors on the device by name


@dataclass(frozen=True, slots=True)
class Loader:
    """`load` takes the files and the device; what it needs alive is in what it gives. Imports happen in `ready`."""

    package: str
    ready: Callable[[], Callable[[Sequence[Path], str], Loaded]]


@dataclass(frozen=True, slots=True)
class Result:
    """What one loader did. Without seconds there is a reason."""

    loader: str
    seconds: tuple[float, ...] = ()
    version: str = ""
    skipped: str = ""


def weight_files(folder: Path) -> list[Path]:
    """Raises FileNotFoundError when the folder has none."""
    if files := sorted(folder.glob("*.safetensors")):
        return files
    raise FileNotFoundError(f"{folder} has no *.safetensors")


def weight_bytes(files: Sequence[Path]) -> int:
    """Of all tensors, headers not counted."""
    total = 0
    for path in files:
        with path.open("rb") as file:
            total += path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    return total


def _safe_open() -> Callable[[Sequence[Path], str], Loaded]:
    safetensors: Any = importlib.import_module("safetensors")

    def load(files: Sequence[Path], device: str) -> Loaded:
        found: Loaded = []
        for path in files:
            with safetensors.safe_open(path, framework="pt", device=device) as file:
                names = file.keys()
                found += [(name, file.get_tensor(name)) for name in names]
        return found

    return load


def _load_file() -> Callable[[Sequence[Path], str], Loaded]:
    library: Any = importlib.import_module("safetensors.torch")
    return lambda files, device: [
        pair for path in files for pair in library.load_file(path, device=device).items()
    ]


def _fastsafetensors() -> Callable[[Sequence[Path], str], Loaded]:
    """Without GPUDirect storage, which would read past the page cache."""
    library: Any = importlib.import_module("fastsafetensors")

    def load(files: Sequence[Path], device: str) -> Loaded:
        loader = library.SafeTensorsFileLoader(library.SingleGroup(), device, nogds=True)
        loader.add_filenames({0: [str(path) for path in files]})
        buffers = loader.copy_files_to_device()
        return [(name, buffers.get_tensor(name)) for name in loader.get_keys()]

    return load


def _runai_streamer() -> Callable[[Sequence[Path], str], Loaded]:
    library: Any = importlib.import_module("runai_model_streamer")

    def load(files: Sequence[Path], device: str) -> Loaded:
        with library.SafetensorsStreamer() as streamer:
            streamer.stream_files([str(path) for path in files], device=device)
            return list(streamer.get_tensors())

    return load


LOADERS: Mapping[str, Loader] = {
    "safetensors safe_open": Loader("safetensors", _safe_open),
    "safetensors load_file": Loader("safetensors", _load_file),
    "fastsafetensors": Loader("fastsafetensors", _fastsafetensors),
    "runai streamer": Loader("runai-model-streamer", _runai_streamer),
}


def load_once(name: str, folder: Path, device: str) -> Result:
    """In this process, which must be fresh. Raises AssertionError when the device has not what the files have."""
    import torch

    if name != FLOOR:
        try:
            load = LOADERS[name].ready()
            version = metadata.version(LOADERS[name].package)
        except (ImportError, OSError) as error:
            return Result(name, skipped=f"{type(error).__name__}: {error}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        return Result(name, skipped="CUDA is not there")
    torch.zeros(1, device=device)
    _synchronize(device)
    if name == FLOOR:
        took = _pinned_copy(weight_bytes(weight_files(folder)), device)
        return Result(name, (took,), str(torch.__version__))
    files = weight_files(folder)
    began = time.perf_counter()
    loaded = load(files, device)
    _synchronize(device)
    took = time.perf_counter() - began
    _prove(files, loaded, device)
    return Result(name, (took,), version)


def _pinned_copy(total: int, device: str) -> float:
    """Seconds of copying `total` bytes into as much memory of the device."""
    import torch

    source = torch.ones(min(total, _PINNED_BYTES), dtype=torch.uint8).pin_memory()
    target = torch.empty(total, dtype=torch.uint8, device=device)
    target.zero_()
    _synchronize(device)
    began = time.perf_counter()
    for piece in target.split(source.numel()):
        piece.copy_(source[: piece.numel()], non_blocking=True)
    _synchronize(device)
    return time.perf_counter() - began


def _prove(files: Sequence[Path], loaded: Loaded, device: str) -> None:
    """All bytes are there, and the first tensor of each file has the file's values."""
    import torch
    from safetensors import safe_open

    assert all(tensor.device.type == torch.device(device).type for _, tensor in loaded)
    size = sum(tensor.nbytes for _, tensor in loaded)
    assert size == weight_bytes(files), f"{size} bytes were loaded of {weight_bytes(files)}"
    tensors = dict(loaded)
    for path in files:
        with safe_open(path, framework="pt") as file:
            name = sorted(file.keys())[0]
            assert torch.equal(tensors[name].cpu(), file.get_tensor(name)), f"{name} differs"


def _synchronize(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def run(folder: Path, repeat: int, device: str) -> list[Result]:
    """All loaders in turn, `repeat` times, so that what drifts meets all of them. The floor is first."""
    files = weight_files(folder)
    results: dict[str, Result] = {}
    for _ in range(repeat):
        for name in (FLOOR, *LOADERS):
            before = results.get(name)
            if before is not None and before.skipped:
                continue
            _warm(files)
            once = _child(name, folder, device)
            seconds = (*(before.seconds if before else ()), *once.seconds)
            results[name] = Result(name, seconds, once.version, once.skipped)
    return list(results.values())


def _child(name: str, folder: Path, device: str) -> Result:
    """One load in a process of its own. One that fails or hangs is a reason too."""
    command = [sys.executable, "-m", "loadtest.weights_path", str(folder.resolve())]
    command += ["--load", name, "--device", device]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LOAD_S_MAX, cwd=_ROOT
        )
    except subprocess.TimeoutExpired:
        return Result(name, skipped=f"not done after {_LOAD_S_MAX:.0f} s")
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["no word"]
        return Result(name, skipped=f"failed with {done.returncode}: {said[-1]}")
    value = json.loads(done.stdout.splitlines()[-1])
    return Result(name, tuple(value["seconds"]), value["version"], value["skipped"])


def _warm(files: Sequence[Path]) -> None:
    buffer = bytearray(_READ_BYTES)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def show(results: Sequence[Result], size_bytes: int) -> str:
    """The table. Without a floor nothing is compared with it."""
    floor = next((r for r in results if r.loader == FLOOR and r.seconds), None)
    rows: list[tuple[object, ...]] = []
    for result in results:
        cells: tuple[object, ...] = ("-", "-", "-")
        if result.seconds:
            median = statistics.median(result.seconds)
            share = f"{median / statistics.median(floor.seconds):.2f} ×" if floor else "-"
            cells = (f"{median:.3f}", f"{size_bytes / median / 1e9:.2f}", share)
        count = len(result.seconds)
        rows.append((result.loader, result.version or "-", count, *cells, result.skipped))
    return table(_HEADER, rows)


def value(folder: Path, results: Sequence[Result], size_bytes: int) -> dict[str, Any]:
    """What the result file holds: the bench's own form, the bytes loaded, versions of loaders and why some are absent."""
    bench = Bench("weights_path")
    times = {result.loader: result.seconds for result in results if result.seconds}
    floor = statistics.median(times[FLOOR]) if FLOOR in times else None
    note = "" if floor is None else _FLOOR_NOTE
    for loader, seconds in times.items():
        if loader != FLOOR:
            bench.add(loader, "load_s", seconds, floor=floor, floor_note=note)
        bench.add(loader, "load_bytes_per_s", [size_bytes / each for each in seconds])
    return bench.value() | {
        "folder": folder.resolve().name,
        "size_bytes": size_bytes,
        "loaders": {r.loader: r.version for r in results if r.version},
        "skipped": {r.loader: r.skipped for r in results if r.skipped},
    }


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    if args.load:
        once = load_once(args.load, args.folder, args.device)
        said = {"seconds": once.seconds, "version": once.version, "skipped": once.skipped}
        print("\n" + json.dumps(said), flush=True)
        os._exit(0)  # freeing what was loaded is not measured and takes long
    if args.repeat < 1:
        parser.error("--repeat is one or more")
    results = run(args.folder, args.repeat, args.device)
    size = weight_bytes(weight_files(args.folder))
    print(show(results, size))
    if args.json:
        text = json.dumps(value(args.folder, results, size), indent=1, ensure_ascii=False)
        args.json.write_text(text + "\n")


def arguments() -> options.Parser:
    parser = options.Parser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=options.folder)
    parser.add_argument("--repeat", type=options.whole(1, 10_000), default=3)
    parser.add_argument("--json", type=options.path, metavar="OUT")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--load", choices=(FLOOR, *LOADERS), help="one load in this process")
    return parser


if __name__ == "__main__":
    main()

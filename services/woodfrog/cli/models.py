"""`woodfrog models`: adding checks the files first, then ingests them, and tells the cell last, so a failure leaves nothing."""

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from woodfrog.catalog import Catalog
from woodfrog.cli import gguf
from woodfrog.cli.cluster import Cluster
from woodfrog.cli.convert import convert
from woodfrog.cli.import_model import import_gguf
from woodfrog.cli.show import size
from woodfrog.cli.tiling import layers_to_tile, tile
from woodfrog.clients.ingest import build_manifest, ingest
from woodfrog.clients.store import ChunkClient, StoreClient
from woodfrog.clients.weight_fs import WeightFsClient
from woodfrog.clock import SystemClock
from woodfrog.coordination import Session
from woodfrog.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    WoodfrogError,
)
from woodfrog.model.manifest import Kind
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.replica import layout

_KEPT = frozenset((".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken"))
_PICKLES = frozenset((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"))
_REPLICAS_END_S = 5.0  # a resting one is gone within a second; one that answers may take minutes
_LOOK_S = 0.1
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Cell:
    """What `models` and `snapshots` change."""

    catalog: Catalog
    store: StoreClient
    chunks: ChunkClient
    weight_fs: tuple[WeightFsClient, ...]  # of the local nodes


@asynccontextmanager
async def connect(cluster: Cluster) -> AsyncIterator[Cell]:
    async with (
        Session([cluster.address("etcd")], SystemClock()) as session,
        StoreClient(cluster.address("snapshot_store")) as store,
        ChunkClient() as chunks,
        AsyncExitStack() as stack,
    ):
        weight_fs = [
            await stack.enter_async_context(WeightFsClient(node.weight_fs))
            for node in cluster.nodes
        ]
        yield Cell(Catalog(session), store, chunks, tuple(weight_fs))


def check_folder(folder: Path) -> list[str]:
    """The files of a Hugging Face folder that make up the model. Raises InvalidArgument or NotFound, one sentence each."""
    if not folder.exists():
        raise NotFound(
            "PATH_NOT_FOUND", f"{folder} does not exist; give a model's folder or a GGUF file"
        )
    if not folder.is_dir():
        raise InvalidArgument(
            "NOT_A_FOLDER", f"{folder} is not a folder; give a model's folder or a GGUF file"
        )
    pipeline = (folder / "model_index.json").is_file()
    files = _files(folder, pipeline)
    weights = [path for path in files if path.suffix == ".safetensors"]
    _check_pickles(folder, files, weights, pipeline)
    for path in weights:
        _check_safetensors(path)
    if pipeline:  # of Diffusers: a folder for each part
        layout.of_folder(folder)
        return [str(path.relative_to(folder)) for path in files if path.suffix in _KEPT]
    architecture = _architecture(folder / "config.json")
    if architecture.endswith("ForImageClassification"):  # reads no text
        if not (folder / "preprocessor_config.json").is_file():
            raise InvalidArgument(
                "NO_PROCESSOR", f"{folder} has no preprocessor_config.json; add the model's"
            )
    elif not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise InvalidArgument(
            "NO_TOKENIZER", f"{folder} has no tokenizer.json; add the model's tokenizer"
        )
    return [str(path.relative_to(folder)) for path in files if path.suffix in _KEPT]


def _files(folder: Path, pipeline: bool) -> list[Path]:
    """Of a model's folder, and of its parts where it has such."""
    for path in folder.iterdir():
        if path.is_symlink() and path.is_dir():
            raise InvalidArgument(
                "LINK_REFUSED", f"{path} is a link to a folder; replace it by a copy"
            )
    parts = "*/*" if pipeline else "*_Pooling/config.json"  # the second is of sentence-transformers
    found = (*folder.iterdir(), *folder.glob(parts))
    files = sorted(path for path in found if path.is_file())
    _check_links(folder, files)
    return files


def _check_pickles(
    folder: Path, files: Sequence[Path], weights: Sequence[Path], pipeline: bool
) -> None:
    """Raises InvalidArgument when the model, or a part of it, has no weights but pickles, or none at all."""
    safe = {path.parent for path in weights}
    if pipeline or not weights:
        pickled = next((p for p in files if p.suffix in _PICKLES and p.parent not in safe), None)
        if pickled is not None:
            raise InvalidArgument(
                "PICKLE_REFUSED",
                f"{pickled.parent} has its weights only as a pickle ({pickled.name}), which can run code; convert them"
                " to safetensors",
            )
    if not weights:
        raise InvalidArgument(
            "NO_WEIGHTS", f"{folder} has no .safetensors file; give the folder with the weights"
        )


async def add(
    cell: Cell, spec: ModelSpec, path: Path, progress: Progress, dtype: str | None = None
) -> ModelSpec:
    """Adds a folder or a GGUF file under `spec.name`; the spec with its weights. Raises woodfrog.errors classes.

    For the llamacpp engine a GGUF file stays as it is.
    With `dtype`, one of `convert.DTYPES`, the weights are converted first. Int4 weights for a GPU are tiled.
    """
    try:
        spec.checked()
    except ValueError as error:
        raise InvalidArgument("BAD_SPEC", str(error)) from None
    if any(known.name == spec.name for known in await cell.catalog.list_models()):
        raise _exists(spec.name)
    if spec.engine == "llamacpp":
        names = gguf.check(spec, path, dtype)
        return await _ingest(cell, spec, path.parent, names, progress)
    if path.suffix == ".gguf" and path.is_file():
        with tempfile.TemporaryDirectory(prefix="woodfrog-import-") as temporary:
            progress("converting the GGUF file to safetensors")
            import_gguf(path, Path(temporary) / "model")
            return await _converted(cell, spec, Path(temporary) / "model", progress, dtype)
    return await _converted(cell, spec, path, progress, dtype)


async def remove(cell: Cell, name: str) -> None:
    """Removes a model with its snapshots and its weights. The scheduler ends its replicas.

    What the local nodes' caches have of it goes when nobody uses it any more, if that is soon; else, as on other machines,
    it is no longer pinned then, and the first to go when room is needed. Raises NotFound MODEL_NOT_FOUND, Unavailable when the store is away; then nothing is removed.
    """
    await cell.store.list()
    spec = await cell.catalog.get_model(name)
    pointers = await cell.catalog.remove_model(name)
    held = [(pointer.manifest, pointer.holder) for pointer in pointers]
    until = time.monotonic() + _REPLICAS_END_S
    for manifest, holder in [*held, (spec.weights, f"model/{name}")]:
        await _drop(cell, manifest, holder, until)


async def drop_snapshot(cell: Cell, pointer: SnapshotPointer) -> None:
    """Raises Unavailable when the store is away; then nothing is removed."""
    await cell.store.list()
    await cell.catalog.remove_snapshot(pointer)
    await _drop(cell, pointer.manifest, pointer.holder)


async def _converted(
    cell: Cell, spec: ModelSpec, folder: Path, progress: Progress, dtype: str | None
) -> ModelSpec:
    with tempfile.TemporaryDirectory(prefix="woodfrog-convert-") as temporary:
        out = Path(temporary) / "model"
        on_gpu = spec.gpu_bytes > 0
        folder = changed(folder, out, progress, dtype, on_gpu)
        return await _ingest(cell, spec, folder, check_folder(folder), progress)


def changed(folder: Path, out: Path, progress: Progress, dtype: str | None, on_gpu: bool) -> Path:
    """The folder to ingest: `folder` itself, or the new one `out` with its weights converted or tiled."""
    names = check_folder(folder)
    if dtype is not None:
        progress(f"converting the weights to {dtype}")
        convert(folder, names, dtype, out)
        return out
    if on_gpu and (layers := layers_to_tile(folder)):
        progress(
            f"tiling the int4 weights of {len(layers)} layers, so that a GPU takes them as they lie"
        )
        tile(folder, names, layers, out)
        return out
    return folder


async def _ingest(
    cell: Cell, spec: ModelSpec, folder: Path, names: Sequence[str], progress: Progress
) -> ModelSpec:
    progress("reading the weights and taking their digests")
    manifest = build_manifest(Kind.WEIGHTS, folder, {"model": spec.name}, names)
    progress(f"bringing {size(manifest.size_bytes)} into the store")
    weights = await ingest(cell.store, cell.chunks, manifest, folder)
    holder = f"model/{spec.name}"
    await cell.store.hold(weights, holder)
    added = replace(
        spec,
        weights=weights,
        weights_bytes=manifest.size_bytes,
        create_time=SystemClock().wall(),
    )
    try:
        await cell.catalog.add_model(added)
    except AlreadyExists:  # somebody was quicker
        if (await cell.catalog.get_model(spec.name)).weights != weights:
            await _drop(cell, weights, holder)
        raise _exists(spec.name) from None
    except WoodfrogError:
        await _drop(cell, weights, holder)
        raise
    return added


async def _drop(cell: Cell, manifest: str, holder: str, until: float = 0.0) -> None:
    """Lets a manifest go, and deletes it unless somebody else holds it. Who uses a local copy has `until` to end."""
    try:
        await cell.store.unhold(manifest, holder)
        await cell.store.delete(manifest)
    except (FailedPrecondition, NotFound):
        return
    for weight_fs in cell.weight_fs:
        with suppress(FailedPrecondition, Unavailable):  # then the cache's limit takes it
            await _evict(weight_fs, manifest, until)


async def _evict(weight_fs: WeightFsClient, manifest: str, until: float) -> None:
    while True:
        try:
            await weight_fs.evict(manifest)
            return
        except FailedPrecondition:  # pinned or open
            if time.monotonic() >= until:
                raise
        await asyncio.sleep(_LOOK_S)


def _exists(name: str) -> AlreadyExists:
    return AlreadyExists(
        "MODEL_EXISTS",
        f"a model {name!r} is there already; choose another name or run: woodfrog models rm {name}",
        model=name,
    )


def _check_safetensors(path: Path) -> None:
    try:
        with safe_open(path, framework="numpy") as file:
            if not list(file.keys()):
                raise InvalidArgument(
                    "NO_WEIGHTS", f"{path} holds no tensor; give the file with the weights"
                )
    except (SafetensorError, OSError) as error:
        raise InvalidArgument(
            "WEIGHTS_DAMAGED", f"{path} is not a whole safetensors file ({error}); fetch it again"
        ) from None


def _check_links(folder: Path, files: Sequence[Path]) -> None:
    """A link may lead to its neighbours, or as in Hugging Face's cache to the model's own blobs: nowhere else."""
    near = (folder.resolve(), folder.resolve().parent.parent / "blobs")
    for path in files:
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in near):
            raise InvalidArgument(
                "LINK_REFUSED", f"{path} is a link to outside of the model; replace it by a copy"
            )


def _architecture(path: Path) -> str:
    """That a config.json names. Raises InvalidArgument."""
    if not path.is_file():
        raise InvalidArgument(
            "NO_CONFIG", f"{path.parent} has no config.json; give a Hugging Face model folder"
        )
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise InvalidArgument("BAD_CONFIG", f"{path} is not JSON; fetch it again") from None
    names = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise InvalidArgument(
            "BAD_CONFIG", f"{path} names no architecture; it must be a Transformers config"
        )
    return names[0]

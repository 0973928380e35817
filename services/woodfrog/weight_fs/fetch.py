"""Brings chunks into the cache: each once, however many wait for it, demand faults before what is read ahead.

A failed chunk fails those who wait for it and is then forgotten, so that the next reader tries again.
"""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from woodfrog.clock import Clock
from woodfrog.errors import DataLoss, Internal, NotFound, Unavailable, WoodfrogError
from woodfrog.weight_fs.cache import CachedTree, NodeCache
from woodfrog.weight_fs.metrics import Metrics
from woodfrog.weight_fs.on_disk import on_disk
from woodfrog.weight_fs.presence import ABSENT, PRESENT, SUSPECT
from woodfrog.weight_fs.source import ChunkSource

log = logging.getLogger(__name__)
_BACKOFF_S = 0.1
_BACKOFF_S_MAX = 2.0
_ATTEMPTS_MAX = 64  # of one chunk; time ends first
_HINTS_MAX = 64  # chunks queued that nobody waits for


class Priority(IntEnum):
    DEMAND = 0  #: somebody's read waits
    PREFETCH = 1
    AHEAD = 2  #: nobody waits for it yet
    VERIFY = 3  #: chunks that lay in the cache when the process started


@dataclass(frozen=True, slots=True)
class Moved:
    fetched_bytes: int = 0  # came from the store
    present_bytes: int = 0  # were there

    def __add__(self, other: "Moved") -> "Moved":
        return Moved(
            self.fetched_bytes + other.fetched_bytes, self.present_bytes + other.present_bytes
        )


@dataclass(eq=False, slots=True)
class _Job:
    tree: CachedTree
    number: int
    priority: Priority
    deadline: float  #: after it an unreachable store is an error
    done: asyncio.Future[Moved]
    started: bool = False


class Fetcher:
    """async with Fetcher(...) as fetcher. Leaving fails whoever waits with Unavailable STOPPING."""

    def __init__(
        self,
        cache: NodeCache,
        source: ChunkSource,
        clock: Clock,
        *,
        concurrency: int,
        retry_s: float,
        metrics: Metrics | None = None,
    ) -> None:
        self._cache = cache
        self._source = source
        self._clock = clock
        self._concurrency = concurrency
        self._retry_s = retry_s
        self.metrics = metrics or Metrics(cache)
        self._jobs: dict[tuple[str, int], _Job] = {}
        self._order = itertools.count()
        self._queue: asyncio.PriorityQueue[tuple[Priority, int, _Job]] = asyncio.PriorityQueue()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def __aenter__(self) -> "Fetcher":
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._concurrency)]
        self._tasks.append(asyncio.create_task(self._verify_suspects()))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for job in list(self._jobs.values()):
            self._finish(job, Unavailable("STOPPING", "weight_fs is stopping; try again"))

    async def ensure(self, tree: CachedTree, numbers: Iterable[int], priority: Priority) -> Moved:
        """Returns when all of the chunks are there, fetched in order. Raises the first error.

        ResourceExhausted CACHE_FULL, DataLoss CHUNK_DAMAGED, Unavailable. Cancelling leaves what was begun to finish.
        """
        moved = Moved()
        ahead: deque[_Job] = deque()
        tree.jobs += 1  # not evicted between two chunks
        try:
            for number in numbers:
                if tree.presence[number] == PRESENT:
                    moved += Moved(present_bytes=tree.presence.weight(number))
                    continue
                if len(ahead) >= 2 * self._concurrency:
                    moved += await asyncio.shield(ahead.popleft().done)
                ahead.append(self._job(tree, number, priority))
            while ahead:
                moved += await asyncio.shield(ahead.popleft().done)
        finally:
            tree.jobs -= 1
            self._cache.settle(tree)
        return moved

    def hint(self, tree: CachedTree, numbers: Iterable[int]) -> None:
        """Starts what may soon be read. Nobody waits for it, and under load it is left out."""
        for number in numbers:
            if len(self._jobs) < _HINTS_MAX and tree.presence[number] != PRESENT:
                self._job(tree, number, Priority.PREFETCH)

    def _job(self, tree: CachedTree, number: int, priority: Priority) -> _Job:
        """The job under way for that chunk, or a new one."""
        if self._stopping:
            raise Unavailable("STOPPING", "weight_fs is stopping; try again")
        key = (tree.digest, number)
        job = self._jobs.get(key)
        deadline = self._clock.now() + self._retry_s
        if job is None:
            done: asyncio.Future[Moved] = asyncio.get_running_loop().create_future()
            done.add_done_callback(_retrieved)
            job = self._jobs[key] = _Job(tree, number, priority, deadline, done)
            tree.jobs += 1
        elif priority < job.priority:
            job.priority, job.deadline = priority, deadline
        else:
            return job
        if not job.started:
            self._queue.put_nowait((priority, next(self._order), job))
        return job

    async def _work(self) -> None:
        while True:
            _, _, job = await self._queue.get()
            if job.started:  # it stood in the queue twice, because its priority rose
                continue
            job.started = True
            try:
                result: Moved | WoodfrogError = await self._obtain(job)
            except WoodfrogError as error:
                result = error
            except Exception as error:  # the outermost frame of a job
                log.error("fetch failed", exc_info=error)
                result = Internal("INTERNAL", "internal error in a fetch; the log has it")
            self._finish(job, result)

    def _finish(self, job: _Job, result: Moved | WoodfrogError) -> None:
        del self._jobs[job.tree.digest, job.number]
        job.tree.jobs -= 1
        if job.tree.presence[job.number] == PRESENT and isinstance(result, WoodfrogError):
            result = Moved()  # the tree was adopted meanwhile
        if isinstance(result, Moved):
            why = job.priority.name.lower()
            self.metrics.fetched.labels(why).inc(result.fetched_bytes)
            job.done.set_result(result)
        else:
            self.metrics.failures.labels(result.reason).inc()
            job.done.set_exception(result)
        self._cache.settle(job.tree)

    async def _obtain(self, job: _Job) -> Moved:
        tree, number = job.tree, job.number
        weight = tree.presence.weight(number)
        charge = True
        if tree.presence[number] == SUSPECT:
            whole = await on_disk(tree.files.check, tree.presence, number)
            if tree.presence[number] == SUSPECT:
                tree.presence.set(number, PRESENT if whole else ABSENT)
            if not whole:
                charge = False  # its room on disk was counted when the process started
                log.warning("chunk in the cache was damaged", extra={"manifest": tree.digest})
        if tree.presence[number] == PRESENT:
            return Moved(present_bytes=weight)
        charged_bytes = await self._cache.reserve(tree, weight) if charge else 0
        try:
            data = await self._download(job)
            await on_disk(tree.files.write, tree.presence, number, data)
        except BaseException:
            tree.allocated_bytes -= charged_bytes
            raise
        tree.presence.set(number, PRESENT)
        return Moved(fetched_bytes=weight)

    async def _download(self, job: _Job) -> bytes:
        file, _ = job.tree.presence.entry(job.number)
        digest = job.tree.presence.digest(job.number)
        assert digest is not None
        verified = False
        for attempt in range(_ATTEMPTS_MAX):
            delay_s = min(_BACKOFF_S * 2**attempt, _BACKOFF_S_MAX)
            left_s = max(job.deadline - self._clock.now(), self._retry_s / 10)
            try:
                async with asyncio.timeout(left_s):
                    data = await self._source.chunk(digest, job.tree.digest)
            except NotFound:
                raise _damaged(job, digest, file.path, "the store does not have it") from None
            except DataLoss as error:
                if verified or not await self._source.verify_chunk(digest):
                    raise _damaged(job, digest, file.path, error.message) from None
                verified = True  # whole in the store: it was damaged on its way
            except (Unavailable, TimeoutError) as error:
                if self._clock.now() + delay_s > job.deadline:
                    raise _unreachable(digest, file.path, error) from None
                await asyncio.sleep(delay_s)
            else:
                if len(data) != job.tree.presence.length(job.number):
                    raise _damaged(job, digest, file.path, f"it has {len(data)} bytes")
                return data
        raise _unreachable(digest, file.path, TimeoutError("too many attempts"))

    async def _verify_suspects(self) -> None:
        """Takes the digests of what lay on disk, so that residency says what is there and complete trees get sealed."""
        while True:
            await self._cache.suspicion.wait()
            self._cache.suspicion.clear()
            for tree in list(self._cache.trees.values()):
                for number in tree.presence.suspects():
                    if self._cache.trees.get(tree.digest) is not tree:
                        break  # evicted meanwhile
                    try:
                        await self.ensure(tree, [number], Priority.VERIFY)
                    except WoodfrogError as error:  # the next reader of the chunk tries again
                        log.warning("chunk not mended", extra={"error": error.message})


def _retrieved(done: asyncio.Future[Moved]) -> None:
    if not done.cancelled():
        done.exception()  # whoever waits gets it too; if nobody does, asyncio must not complain


def _damaged(job: _Job, digest: str, path: str, why: str) -> DataLoss:
    return DataLoss(
        "CHUNK_DAMAGED",
        f"chunk {digest} of {path} in {job.tree.digest} cannot be had whole: {why}; ingest it again",
        chunk=digest,
        path=path,
        manifest=job.tree.digest,
    )


def _unreachable(digest: str, path: str, error: Exception) -> Unavailable:
    return Unavailable(
        "STORE_UNREACHABLE",
        f"chunk {digest} of {path} cannot be fetched: {str(error) or 'no answer in time'}; see that "
        "the snapshot store runs",
        chunk=digest,
    )

"""The store: the inventory and the disk, changed together.

One thread runs every method here, so each is one step to all others; `threads.py` has that thread. Only the bytes of
chunks are written and hashed elsewhere, before their chunk has a name. In each change the disk goes first where a crash
must leave the new state, and garbage is unlinked last.
"""

import logging
import re
import secrets
from dataclasses import dataclass

from woodfrog.clients.store import ManifestSummary
from woodfrog.clock import Clock
from woodfrog.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from woodfrog.model import digest as digests
from woodfrog.model.manifest import Manifest
from woodfrog.snapshot_store.disk import Disk, Upload, store_full
from woodfrog.snapshot_store.state import UNKNOWN, Committed, Content, Ingest, Inventory

log = logging.getLogger(__name__)
INGESTS_MAX = 64
COLLECT_BATCH = 64  # chunks unlinked in one step: some 20 ms
_HOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@:-]{0,199}")


@dataclass(frozen=True, slots=True)
class Begun:
    ingest_id: str
    manifest_digest: str
    missing: list[str]


class Store:
    def __init__(
        self, disk: Disk, clock: Clock, *, ingest_idle_s: float, reserve_bytes: int
    ) -> None:
        self.inventory = Inventory()
        self._disk = disk
        self._clock = clock
        self._ingest_idle_s = ingest_idle_s
        self._reserve_bytes = reserve_bytes

    def recover(self) -> None:
        """Makes the inventory from the disk, and drops what nobody needs."""
        self._disk.open()
        manifests: dict[str, Committed] = {}
        for found in self._disk.find_manifests():
            content, why = UNKNOWN, "its bytes do not match its digest"
            if found.encoded is not None:
                try:
                    content, why = Content.of(Manifest.decode(found.encoded)), ""
                except ValueError as error:  # e.g. of a later version
                    why = str(error)
            if why:
                log.error("manifest unusable", extra={"manifest": found.digest, "error": why})
            manifests[found.digest] = Committed(content, found.create_time, damaged=bool(why))
        self.inventory.recover(manifests, self._disk.find_chunks())
        for digest, holder in list(self._disk.find_holds()):
            if digest in manifests:
                self.inventory.holders.setdefault(digest, set()).add(holder)
            else:
                self._disk.remove_hold(digest, holder)
        dropped = len(self.inventory.garbage)
        while self.collect():
            pass
        for digest, manifest in manifests.items():
            if missing := self.inventory.missing(manifest.content):
                extra = {"manifest": digest, "missing": len(missing), "first": missing[0]}
                log.error("manifest lacks chunks", extra=extra)
        counts = {"manifests": len(manifests), "chunks": len(self.inventory.present)}
        log.info("recovered", extra={**counts, "dropped_chunks": dropped})

    # ingest

    def begin(self, encoded: bytes) -> Begun:
        try:
            manifest = Manifest.decode(encoded)
            content = Content.of(manifest)
            if manifest.encode() != encoded:
                raise ValueError("it is not in the canonical encoding")
        except (ValueError, TypeError) as error:
            raise InvalidArgument(
                "MANIFEST_INVALID", f"manifest cannot be ingested: {error}"
            ) from None
        digest = digests.of_bytes(encoded)
        ingest = self.inventory.ingests.get(digest)
        if ingest is None:
            ingest_id = f"{digests.hex_of(digest)}.{secrets.token_hex(6)}"
            ingest = Ingest(ingest_id, digest, content, self._clock.now())
            self._admit(content)
            self._disk.stage_manifest(ingest.id, encoded)
            self.inventory.begin(ingest)
        ingest.used = self._clock.now()
        return Begun(ingest.id, digest, self.inventory.missing(content))

    def _admit(self, content: Content) -> None:
        if len(self.inventory.ingests) >= INGESTS_MAX:
            raise ResourceExhausted(
                "INGESTS_FULL",
                f"snapshot store has {INGESTS_MAX} ingests under way; try again when one ended",
                retry_after_s=1.0,
            )
        pending = self.inventory.pending_bytes(content)
        free = self._disk.free_bytes() - self._reserve_bytes
        if pending > free:
            raise store_full(f"{pending} bytes are to come, {max(0, free)} are free")

    def want(self, chunk: str) -> None:
        """Raises FailedPrecondition when no ingest under way names this chunk."""
        if not self.inventory.touch(chunk, self._clock.now()):
            raise FailedPrecondition(
                "CHUNK_UNWANTED",
                f"no ingest under way names chunk {chunk}; begin the ingest again",
                chunk=chunk,
            )

    def publish(self, upload: Upload, chunk: str) -> None:
        """`upload` is sealed and its digest is `chunk`."""
        self.want(chunk)
        if self.inventory.present.get(chunk) != upload.size_bytes:
            self._disk.publish_chunk(upload, chunk)
            self.inventory.arrive(chunk, upload.size_bytes)

    def commit(self, ingest_id: str) -> str:
        ingest = self.inventory.ingest(ingest_id)
        if ingest is None:
            digest = digests.PREFIX + ingest_id.partition(".")[0]
            if digest in self.inventory.manifests:
                return digest  # an answer was lost
            raise NotFound(
                "INGEST_NOT_FOUND",
                f"ingest {ingest_id[:80]!r} is not under way; begin again",
                ingest_id=ingest_id,
            )
        ingest.used = self._clock.now()
        if missing := self.inventory.missing(ingest.content):
            raise FailedPrecondition(
                "CHUNKS_MISSING",
                f"{len(missing)} chunks of manifest {ingest.manifest_digest} are missing, the first"
                f" is {missing[0]}; begin again to learn which, and put them",
                manifest=ingest.manifest_digest,
                chunk=missing[0],
            )
        self._disk.sync_chunks(ingest.content.chunks)
        old = self.inventory.manifests.get(ingest.manifest_digest)
        if old is None or old.damaged:
            created = self._disk.publish_manifest(ingest.id, ingest.manifest_digest)
        else:
            created = old.create_time
            self._disk.drop_staged(ingest.id)
        self.inventory.commit(ingest, created)
        extra = {"manifest": ingest.manifest_digest, "stored_bytes": ingest.content.stored_bytes}
        log.info("manifest committed", extra=extra)
        return ingest.manifest_digest

    def abort(self, ingest_id: str) -> None:
        if ingest := self.inventory.ingest(ingest_id):
            self._drop(ingest)

    def expire(self) -> None:
        """Drops the ingests whose client is gone."""
        for ingest in self.inventory.idle(self._clock.now() - self._ingest_idle_s):
            log.warning("ingest expired", extra={"manifest": ingest.manifest_digest})
            self._drop(ingest)

    def _drop(self, ingest: Ingest) -> None:
        self._disk.drop_staged(ingest.id)
        self.inventory.drop(ingest)

    # manifests

    def get(self, digest: str) -> bytes:
        self._require(digest)
        encoded = self._disk.read_manifest(digest)
        if encoded is None:
            self.inventory.blame(digest)
            raise DataLoss(
                "MANIFEST_DAMAGED",
                f"manifest {digest} is damaged in the store; ingest it again or delete it",
                manifest=digest,
            )
        return encoded

    def list(self) -> list[ManifestSummary]:
        """Without damaged ones."""
        return [
            ManifestSummary(
                manifest_digest=digest,
                kind=manifest.content.kind,
                size_bytes=manifest.content.size_bytes,
                stored_bytes=manifest.content.stored_bytes,
                create_time=manifest.create_time,
                holders=tuple(sorted(self.inventory.holders.get(digest, ()))),
            )
            for digest, manifest in sorted(self.inventory.manifests.items())
            if not manifest.damaged
        ]

    def delete(self, digest: str) -> int:
        """Bytes that `collect` will free."""
        self._require(digest)
        if holders := self.inventory.holders.get(digest):
            names = ", ".join(sorted(holders))
            raise FailedPrecondition(
                "MANIFEST_HELD",
                f"manifest {digest} is held by {names}; remove what uses it first",
                manifest=digest,
                holders=names,
            )
        self._disk.unlink_manifest(digest)
        freed_bytes = self.inventory.delete(digest)
        log.info("manifest deleted", extra={"manifest": digest, "freed_bytes": freed_bytes})
        return freed_bytes

    def hold(self, digest: str, holder: str) -> None:
        self._require(digest)
        if not _HOLDER.fullmatch(holder) or not self._disk.can_name(holder):
            raise InvalidArgument(
                "HOLDER_INVALID",
                f"holder {holder[:80]!r} is not 1 to 200 letters, digits, '.', '_', '/', '@', ':', '-'",
            )
        self._disk.add_hold(digest, holder)
        self.inventory.holders.setdefault(digest, set()).add(holder)

    def unhold(self, digest: str, holder: str) -> None:
        holders = self.inventory.holders.get(digest, set())
        if holder not in holders:
            return
        self._disk.remove_hold(digest, holder)
        holders.remove(holder)
        if not holders:
            del self.inventory.holders[digest]

    def _require(self, digest: str) -> None:
        if digest not in self.inventory.manifests:
            raise NotFound(
                "MANIFEST_NOT_FOUND",
                f"manifest {digest[:80]!r} is not in the store; ingest it first",
                manifest=digest,
            )

    # chunks

    def put_aside(self, chunk: str) -> bool:
        """Whether the chunk was damaged. Looks again, as it may have been replaced since the caller looked."""
        if chunk not in self.inventory.present or self._disk.chunk_whole(chunk):
            return False
        path = self._disk.put_chunk_aside(chunk)
        self.inventory.lose(chunk)
        log.error("chunk damaged and put aside", extra={"chunk": chunk, "path": str(path)})
        return True

    def collect(self) -> bool:
        """Unlinks some garbage. Whether there is more."""
        for chunk in self.inventory.pick_garbage(COLLECT_BATCH):
            self._disk.unlink_chunk(chunk)
            self.inventory.lose(chunk)
        return bool(self.inventory.garbage)

"""The cluster as the scheduler knows it: models, nodes, replicas, and the indexes over them. Pure.

`state.py` alone writes; `policy.py` reads. What the nodes say wins over what is written here.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from woodfrog.model.node import NodeFacts, Replica, ReplicaState, Resident
from woodfrog.model.placement import ReadyReplica
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec

RESTING = (ReplicaState.PARKED, ReplicaState.HOT)
_BELOW = (ReplicaState.CLIMBING, *RESTING)
LIVE = (ReplicaState.SERVING, *RESTING)
#: A request is on its way to what another scheduler lifted: after so long its router has told of it.
_ARRIVES_S = 1.0


def fingerprint_key(fingerprint: Mapping[str, str]) -> str:
    """The node part of a fingerprint as one word, quick to look up."""
    return "\n".join(f"{name}={value}" for name, value in sorted(fingerprint.items()))


@dataclass(slots=True)
class ReplicaRecord:
    replica: Replica
    used: float  #: when it was last used, as far as is known
    climb: str | None = None  #: that lifts it; it is offered to nobody else before that ends
    descending: Rung | None = None  #: asked to go there, not answered yet
    suspect_since: float | None = None  #: failed a router; not offered until its node names it
    descend_began: float = 0.0  #: when it was asked
    words: int = 0  #: how often its node's stream named it
    words_then: int = 0  #: when it was last asked to move
    #: Its node did not lower it, or another scheduler lifted it; counts as used until then.
    descend_after: float = float("-inf")
    busy: bool = False  #: requests run on it
    active: int = 0  #: so many
    active_since: float = 0.0  #: up to when the time that they took is accounted for
    quiet: bool = False  #: it may be lowered: live, not busy, and `descend_after` is over
    announced: bool = False  #: routers were told that it is ready
    kept: bool = False  #: its `keep_hot_s` is not over
    needed: bool = False  #: it is one of the `replicas_min` that serve always
    leaving: bool = False  #: its node drains and its model can climb elsewhere: offered no more
    #: What the plan gives for its rest; it knows nothing of those that were used since.
    value: float = float("inf")

    def use(self, now: float) -> None:
        self.used = now
        self.value = float("inf")

    def behind(self, *on_the_way: ReplicaState) -> bool:
        """Whether its node's answer is newer than what the stream told: nothing since, or that it is `on_the_way`.

        Otherwise the stream told as much, and maybe what another scheduler did since.
        """
        return self.words == self.words_then or self.replica.state in on_the_way

    @property
    def live(self) -> bool:
        return self.replica.state in LIVE and self.climb is None and self.descending is None

    def descends_off(self, gpu: bool) -> bool:
        """It is leaving its node's memory, or, where that is what counts, its GPU."""
        return self.descending is Rung.FROZEN or (gpu and self.descending is not None)

    @property
    def ready(self) -> ReadyReplica:
        replica = self.replica
        return ReadyReplica(
            replica.replica_id, replica.model, replica.node, replica.socket_path, replica.slots
        )


@dataclass(slots=True)
class NodeRecord:
    facts: NodeFacts
    print_key: str
    replicas: dict[str, ReplicaRecord] = field(default_factory=dict)
    residents: dict[str, Resident] = field(default_factory=dict)
    silent: bool = False  #: its stream is down; nothing new goes there
    reserved_bytes: int = 0  #: of climbs that the node has not named yet
    reserved_count: int = 0
    reserved_gpu_bytes: dict[str, int] = field(default_factory=dict)  #: by uuid; never 0
    refused_bytes: int | None = None  #: it refused so much although its facts had room
    refused_gpu_bytes: int = 0  #: together with so much of a GPU
    climbs: int = 0  #: of ours, under way there
    coming: Counter[str] = field(default_factory=Counter)  #: manifests, from the store; never 0

    @property
    def free_bytes(self) -> int:
        facts = self.facts
        return facts.memory_bytes - facts.memory_promised_bytes - self.reserved_bytes

    @property
    def free_count(self) -> int:
        return self.facts.replica_count_max - len(self.replicas) - self.reserved_count

    def free_gpu_bytes(self, uuid: str) -> int:
        """Below 0 when more is reserved than it has, as of a GPU that is gone."""
        free = -self.reserved_gpu_bytes.get(uuid, 0)
        for gpu in self.facts.gpus:
            if gpu.uuid == uuid:
                free += gpu.memory_bytes - gpu.promised_bytes
        return free

    def holds(self, manifest: str) -> bool:
        """All of it, on disk, verified."""
        resident = self.residents.get(manifest)
        return resident is not None and resident.complete

    def refuses(self, need_bytes: int, gpu_bytes: int) -> bool:
        """It would refuse so much, as it refused no more a moment ago."""
        return (
            self.refused_bytes is not None
            and need_bytes >= self.refused_bytes
            and gpu_bytes >= self.refused_gpu_bytes
        )


@dataclass(slots=True)
class ModelRecord:
    spec: ModelSpec
    requested: float | None = None  #: when its last request came
    active: float | None = (
        None  #: when it was last asked for or used; None: never, as far as is known
    )


class ClusterView:
    def __init__(self) -> None:
        self.models: dict[str, ModelRecord] = {}
        self.nodes: dict[str, NodeRecord] = {}
        self.replicas: dict[str, ReplicaRecord] = {}
        self.lowering: dict[str, ReplicaRecord] = {}  # that were asked to descend
        self.holders: dict[str, set[str]] = {}  # manifest to nodes that have something of it
        self.coming: dict[str, set[str]] = {}  # manifest to nodes to which it is fetched
        self.changed_nodes: set[str] = set()  # whose summary is old
        self.table: Any = None  # of summaries, by `candidates.py`
        self._of_model: dict[str, dict[str, ReplicaRecord]] = {}  # also of models not listed
        self._pointers: dict[str, dict[str, SnapshotPointer]] = {}  # model, fingerprint digest

    def replicas_of(self, model: str) -> Iterable[ReplicaRecord]:
        return self._of_model.get(model, {}).values()

    def changed(self, node: str) -> None:
        """Call after any change of the node's record, or of a replica's on it."""
        self.changed_nodes.add(node)

    def put_node(self, name: str, node: NodeRecord) -> None:
        self.nodes[name] = node
        for manifest in node.residents:
            self.holders.setdefault(manifest, set()).add(name)
        self.changed(name)

    def drop_node(self, name: str) -> None:
        self.put_residents(name, (), self.nodes[name].residents)
        assert not self.nodes[name].coming
        del self.nodes[name]
        self.changed(name)

    def put_residents(
        self, name: str, residents: Iterable[Resident], gone: Iterable[str] = ()
    ) -> None:
        known = self.nodes[name].residents
        for manifest in [*gone]:
            if known.pop(manifest, None) is not None:
                self.holders[manifest].discard(name)
                if not self.holders[manifest]:
                    del self.holders[manifest]
        for resident in residents:
            known[resident.manifest] = resident
            self.holders.setdefault(resident.manifest, set()).add(name)

    def comes(self, manifest: str, node: str, count: int) -> None:
        """So many more fetch it to the node, or fewer."""
        coming = self.nodes[node].coming
        coming[manifest] += count
        nodes = self.coming.setdefault(manifest, set())
        if coming[manifest]:
            nodes.add(node)
        else:
            del coming[manifest]
            nodes.discard(node)
        if not nodes:
            del self.coming[manifest]

    def usable(self, record: ReplicaRecord) -> bool:
        """It answers for its model as that is listed now."""
        model = self.models.get(record.replica.model)
        return model is not None and record.replica.is_of(model.spec)

    def offered(self, record: ReplicaRecord) -> bool:
        serving = record.live and record.replica.state is ReplicaState.SERVING
        asked = record.suspect_since is None and not record.leaving
        return serving and asked and self.usable(record)

    def leaves(self, record: ReplicaRecord) -> bool:
        """No new request finds it: it leaves a node that drains, or rests on one."""
        replica = record.replica
        stuck = replica.state in RESTING and self.nodes[replica.node].facts.draining
        return record.leaving or stuck

    def coming_slots(self, model: str) -> int:
        """Of replicas that another scheduler lifts: who waits for one of these needs no climb of ours."""
        return sum(
            record.replica.slots
            for record in self.replicas_of(model)
            if record.replica.state is ReplicaState.CLIMBING and record.climb is None
            if record.suspect_since is None and self.usable(record)
            if not self.nodes[record.replica.node].silent
        )

    def climb_over(self, node: str) -> None:
        """One fewer is under way there."""
        if node in self.nodes:
            self.nodes[node].climbs -= 1
            self.changed(node)

    def draining_count(self, model: str) -> int:
        """Of replicas that are offered, on nodes that drain."""
        offered = (record for record in self.replicas_of(model) if self.offered(record))
        return sum(self.nodes[record.replica.node].facts.draining for record in offered)

    def put_replica(self, replica: Replica, now: float) -> ReplicaRecord:
        """Its node must be known, and a replica never changes its node or model."""
        record = self.replicas.get(replica.replica_id)
        if record is None:
            record = ReplicaRecord(replica, used=now)
            self.replicas[replica.replica_id] = record
            self.nodes[replica.node].replicas[replica.replica_id] = record
            self._of_model.setdefault(replica.model, {})[replica.replica_id] = record
        assert (record.replica.node, record.replica.model) == (replica.node, replica.model)
        before, record.replica = record.replica, replica
        rises = replica.state is ReplicaState.SERVING and before.state in _BELOW
        if rises and record.climb is None:
            record.use(now)  # another scheduler lifted it, for somebody
            record.descend_after = max(record.descend_after, now + _ARRIVES_S)
        self.changed(replica.node)
        return record

    def lower(self, record: ReplicaRecord, rung: Rung | None) -> None:
        """It was asked to go there; None: that is answered."""
        record.descending = rung
        if rung is not None:
            self.lowering[record.replica.replica_id] = record
        else:
            self.lowering.pop(record.replica.replica_id, None)

    def drop_replica(self, replica_id: str) -> ReplicaRecord | None:
        record = self.replicas.pop(replica_id, None)
        self.lowering.pop(replica_id, None)
        if record is not None:
            of_model = self._of_model[record.replica.model]
            del of_model[replica_id]
            if not of_model:
                del self._of_model[record.replica.model]
            del self.nodes[record.replica.node].replicas[replica_id]
            self.changed(record.replica.node)
        return record

    def pointers(self, spec: ModelSpec) -> dict[str, SnapshotPointer]:
        """By key of the node part; of several the newest. Whether the engine part fits is the agent's to say."""
        fitting = [
            pointer
            for pointer in self._pointers.get(spec.name, {}).values()
            if pointer.fingerprint.weights == spec.weights
        ]
        fitting.sort(key=lambda pointer: (pointer.create_time, pointer.manifest))
        return {fingerprint_key(pointer.fingerprint.node): pointer for pointer in fitting}

    def put_pointer(self, pointer: SnapshotPointer) -> None:
        of_model = self._pointers.setdefault(pointer.model, {})
        of_model[pointer.fingerprint.digest] = pointer

    def drop_pointer(self, pointer: SnapshotPointer) -> None:
        of_model = self._pointers.get(pointer.model, {})
        of_model.pop(pointer.fingerprint.digest, None)
        if not of_model:
            self._pointers.pop(pointer.model, None)

    def clear_pointers(self) -> None:
        self._pointers.clear()

    def check(self) -> None:
        for replica_id, record in self.replicas.items():
            replica = record.replica
            assert replica.replica_id == replica_id
            assert not record.quiet or (record.live and not record.busy)
            assert (replica_id in self.lowering) == (record.descending is not None)
            assert self.nodes[replica.node].replicas[replica_id] is record
            assert self._of_model[replica.model][replica_id] is record
        assert self.lowering.keys() <= self.replicas.keys()
        count = len(self.replicas)
        assert sum(len(node.replicas) for node in self.nodes.values()) == count
        assert sum(map(len, self._of_model.values())) == count
        assert all(self._of_model.values()), "a model without replicas is kept"
        assert all(self._pointers.values()), "a model without pointers is kept"
        holders: dict[str, set[str]] = {}
        for name, node in self.nodes.items():
            for manifest in node.residents:
                holders.setdefault(manifest, set()).add(name)
        assert self.holders == holders
        coming: dict[str, set[str]] = {}
        for name, node in self.nodes.items():
            for manifest in node.coming:
                coming.setdefault(manifest, set()).add(name)
        assert self.coming == coming
        for node in self.nodes.values():
            assert node.print_key == fingerprint_key(node.facts.fingerprint)
            assert node.reserved_bytes >= 0
            assert node.reserved_count >= 0
            assert all(reserved > 0 for reserved in node.reserved_gpu_bytes.values())

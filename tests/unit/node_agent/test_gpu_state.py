"""What a GPU's memory is promised to: never more than there is, and what is lowered gives the room that was said."""

from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from woodfrog.model.node import ReplicaState
from woodfrog.model.rung import Rung
from woodfrog.node_agent import state
from woodfrog.node_agent.gpu_state import Bring, GpuState, Need
from woodfrog.node_agent.state import NodeState

GIB = 1 << 30
IDS = st.sampled_from(["a", "b", "c", "d", "e"])
HOMES = st.sampled_from(["", "gpu-0", "gpu-1", "gpu-9"])
SIZES = {"x": 2, "y": 3, "z": 5}  # GiB of weights


def gpu(memory: int = 10, arena: int = 8) -> GpuState:
    return GpuState("gpu-0", memory * GIB, arena * GIB, context_bytes=GIB)


def need(weights: str = "w", size: int = 4, private: int = 2, home: str = "") -> Need:
    return Need(private * GIB, weights, size * GIB, home)


def bring(
    weights: str,
    host: bool,
    drop_device: tuple[str, ...] = (),
    drop_host: tuple[str, ...] = (),
    *,
    private: int = 2,
    size: int = 4,
) -> Bring:
    return Bring("gpu-0", weights, host, drop_device, drop_host, private * GIB, size * GIB)


def on_gpu(node: NodeState, replica_id: str, wanted: Need) -> state.Command:
    return node.handle(state.StartRequested(replica_id, wanted.weights, GIB, wanted))


def rests(node: NodeState, replica_id: str, rung: Rung) -> None:
    node.handle(state.DescendRequested(replica_id, rung))
    node.handle(state.DescendFinished(replica_id, ReplicaState(rung.value)))
    node.check()


def test_two_replicas_of_a_model_share_one_copy_of_its_weights() -> None:
    node = NodeState(64 * GIB, 8, [gpu(8)])
    for replica_id, host in (("a", True), ("b", False)):
        command = on_gpu(node, replica_id, need())
        assert command == state.Start(replica_id, bring("w", host))
        node.check()
    assert node.gpus["gpu-0"].free_bytes == 0
    assert isinstance(on_gpu(node, "c", need()), state.Refuse)


def test_idle_weights_go_when_room_is_needed_and_longest_unused_first() -> None:
    node = NodeState(64 * GIB, 8, [gpu(14, arena=0)])
    for weights in ("w1", "w2"):
        on_gpu(node, weights, need(weights))
        node.handle(state.ClimbFinished(weights))
        node.handle(state.ReplicaEnded(weights))
    assert on_gpu(node, "a", need("w3")) == state.Start("a", bring("w3", False))
    node.check()
    assert on_gpu(node, "b", need("w4")) == state.Start("b", bring("w4", False, ("w1", "w2")))


def test_resting_replicas_go_down_when_room_is_needed_and_serving_ones_never() -> None:
    node = NodeState(64 * GIB, 8, [gpu(10)])
    on_gpu(node, "a", need("w1"))
    node.handle(state.ClimbFinished("a"))
    assert isinstance(on_gpu(node, "b", need("w2", size=5)), state.Refuse)
    rests(node, "a", Rung.HOT)
    assert node.gpus["gpu-0"].free_bytes == 5 * GIB
    assert on_gpu(node, "b", need("w2", size=5)) == state.Lower((("a", Rung.PARKED),))
    rests(node, "a", Rung.PARKED)
    started = on_gpu(node, "b", need("w2", size=5))
    assert started == state.Start("b", bring("w2", True, ("w1",), ("w1",), size=5))
    node.check()
    node.handle(state.ClimbFinished("b"))
    refused = node.handle(state.ThawRequested("a"))
    assert isinstance(refused, state.Refuse)
    assert refused.reason == "NODE_FULL"
    rests(node, "b", Rung.PARKED)
    thawed = node.handle(state.ThawRequested("a"))
    assert thawed == state.Thaw("a", bring("w1", True, ("w2",), ("w2",), private=1))


def test_room_is_made_in_the_order_that_was_asked_for_and_others_go_before() -> None:
    def lowered(*yields: str, size: int = 4) -> state.Command:
        wanted = need("w4", size)
        return node.handle(state.StartRequested("d", "w4", GIB, wanted, yields))

    node = NodeState(64 * GIB, 8, [gpu(17)])
    for number, replica_id in enumerate("abc"):
        on_gpu(node, replica_id, need(f"w{number}"))
        node.handle(state.ClimbFinished(replica_id))
        rests(node, replica_id, Rung.HOT)
    a, b, c = ((replica_id, Rung.PARKED) for replica_id in "abc")
    assert lowered() == state.Lower((a,))
    assert lowered("c", "b", "a") == state.Lower((c,))
    assert lowered("c", "b", "a", size=8) == state.Lower((c, b))
    assert lowered("b", "a", "gone") == state.Lower((c,))
    for number, replica_id in enumerate("abc"):
        rests(node, replica_id, Rung.PARKED)
        node.gpus["gpu-0"].lose(f"w{number}")
    assert lowered("b", "c", "a", size=13) == state.Lower((("b", Rung.FROZEN),))


def test_a_hot_one_needs_nothing_from_the_vault() -> None:
    node = NodeState(64 * GIB, 8, [gpu(10)])
    on_gpu(node, "a", need("w1"))
    node.handle(state.ClimbFinished("a"))
    rests(node, "a", Rung.HOT)
    assert node.handle(state.ThawRequested("a")) == state.Thaw("a", None, stopped=False)
    node.check()
    assert node.gpus["gpu-0"].free_bytes == 4 * GIB


def test_replicas_that_share_weights_are_parked_together_and_others_not_for_nothing() -> None:
    node = NodeState(64 * GIB, 8, [gpu(16)])
    for replica_id, weights in (("a", "w1"), ("b", "w1"), ("h", "w3")):
        on_gpu(node, replica_id, need(weights))
        node.handle(state.ClimbFinished(replica_id))
    for replica_id in ("h", "a", "b"):
        rests(node, replica_id, Rung.HOT)
    # "h" has the weights that are wanted, so parking it gives nothing.
    wanted = need("w3", private=9)
    assert on_gpu(node, "c", wanted) == state.Lower((("a", Rung.PARKED), ("b", Rung.PARKED)))


def test_a_replica_that_ends_as_its_climb_finishes_does_not_come_back() -> None:
    node = NodeState(64 * GIB, 8, [gpu(10)])
    on_gpu(node, "a", need())
    node.handle(state.EndBegun("a"))
    node.handle(state.ClimbFinished("a"))
    assert node.promises["a"].state is ReplicaState.DESCENDING
    node.check()


def test_weights_that_are_on_the_gpu_are_not_pinned_again() -> None:
    node = NodeState(64 * GIB, 8, [gpu(20)])
    on_gpu(node, "a", need())
    node.handle(state.ClimbFinished("a"))
    node.handle(state.ReplicaEnded("a"))
    node.gpus["gpu-0"].pinned.clear()
    assert on_gpu(node, "b", need()) == state.Start("b", bring("w", False))


def test_a_parked_one_is_frozen_for_room() -> None:
    node = NodeState(64 * GIB, 8, [gpu(7)])
    on_gpu(node, "a", need("w1"))
    node.handle(state.ClimbFinished("a"))
    rests(node, "a", Rung.HOT)
    assert on_gpu(node, "b", need("w2", size=5)) == state.Lower((("a", Rung.FROZEN),))


def test_weights_that_could_not_be_brought_are_forgotten_with_their_replica() -> None:
    node = NodeState(64 * GIB, 8, [gpu(8)])
    on_gpu(node, "a", need())
    node.handle(state.ReplicaEnded("a"))
    node.handle(state.WeightsLost("gpu-0", "w"))
    assert node.gpus["gpu-0"].free_bytes == 8 * GIB
    assert not node.gpus["gpu-0"].pinned


def test_the_gpu_with_the_weights_is_chosen() -> None:
    other = GpuState("gpu-1", 20 * GIB, 0, GIB)
    node = NodeState(64 * GIB, 8, [gpu(20), other])
    on_gpu(node, "a", need("w1"))
    second = on_gpu(node, "b", need("w2"))
    third = on_gpu(node, "c", need("w2"))
    for command in (second, third):
        assert isinstance(command, state.Start)
        assert command.bring
        assert command.bring.gpu == "gpu-1"


def test_weights_that_nobody_uses_are_at_hand_and_take_no_room() -> None:
    node = NodeState(64 * GIB, 8, [GpuState("gpu-0", 20 * GIB, 4 * GIB, GIB)])
    on_gpu(node, "a", need("w1"))
    node.handle(state.ClimbFinished("a"))
    told = node.gpus["gpu-0"].facts()
    assert (told.promised_bytes, told.weights, told.at_hand) == (6 * GIB, ("w1",), ("w1",))
    on_gpu(node, "b", need("w2"))  # pinned instead of w1
    node.handle(state.ReplicaEnded("a"))
    told = node.gpus["gpu-0"].facts()
    assert (told.promised_bytes, told.weights, told.at_hand) == (6 * GIB, ("w2",), ("w1", "w2"))


def test_one_that_was_frozen_elsewhere_has_weights_of_its_own() -> None:
    """Private 2, weights 4, on GPUs of 11; a context keeps 1."""
    node = NodeState(64 * GIB, 8, [gpu(11)])
    here = node.gpus["gpu-0"]
    started = on_gpu(node, "a", need(home="gpu-9"))
    assert started == state.Start(
        "a", Bring("gpu-0", "w", True, (), (), 6 * GIB, 4 * GIB, own=True)
    )
    node.handle(state.ClimbFinished("a"))
    assert (here.free_bytes, here.facts().weights) == (5 * GIB, ())
    assert isinstance(on_gpu(node, "b", need(home="gpu-9")), state.Refuse)
    rests(node, "a", Rung.HOT)
    assert here.free_bytes == 6 * GIB
    assert on_gpu(node, "b", need(private=3)) == state.Lower((("a", Rung.PARKED),))
    rests(node, "a", Rung.PARKED)
    assert here.free_bytes == 10 * GIB
    thawed = node.handle(state.ThawRequested("a"))
    assert thawed == state.Thaw("a", Bring("gpu-0", "w", True, (), (), 5 * GIB, 4 * GIB, own=True))
    node.check()


def test_both_copies_on_a_gpu_are_counted_and_the_idle_one_goes_last() -> None:
    node = NodeState(64 * GIB, 8, [gpu(16, arena=0)])
    for weights in ("w", "w2"):  # "w" unused for longer
        on_gpu(node, weights, need(weights))
        node.handle(state.ClimbFinished(weights))
        node.handle(state.ReplicaEnded(weights))
    moved = on_gpu(node, "a", need(home="gpu-9"))
    assert isinstance(moved, state.Start)
    assert moved.bring
    assert moved.bring.drop_device == ()
    node.handle(state.ClimbFinished("a"))
    node.check()
    more = on_gpu(node, "b", need(home="gpu-9"))
    assert isinstance(more, state.Start)
    assert more.bring
    assert more.bring.drop_device == ("w2",)
    node.check()


def test_a_restore_elsewhere_that_failed_starts_cold_and_shares() -> None:
    node = NodeState(64 * GIB, 8, [gpu(8)])
    on_gpu(node, "a", need(home="gpu-9"))
    assert node.handle(state.ColdRequested("a")) == state.Start("a", bring("w", True))
    node.check()
    assert on_gpu(node, "b", need()) == state.Start("b", bring("w", False))


def test_home_is_chosen_before_room_and_weights() -> None:
    node = NodeState(64 * GIB, 8, [gpu(11), GpuState("gpu-1", 20 * GIB, 0, GIB)])
    for replica_id, place in (("a", "gpu-0"), ("b", "gpu-1")):
        command = on_gpu(node, replica_id, need(home="gpu-0", private=5))
        assert isinstance(command, state.Start)
        assert command.bring
        assert (command.bring.gpu, command.bring.own) == (place, place != "gpu-0")
        node.check()


def test_another_gpu_is_made_free_when_the_one_at_home_cannot_be() -> None:
    node = NodeState(64 * GIB, 8, [gpu(10), GpuState("gpu-1", 10 * GIB, 0, GIB)])
    for replica_id, place in (("a", "gpu-0"), ("b", "gpu-1")):
        on_gpu(node, replica_id, need(replica_id, home=place))
        node.handle(state.ClimbFinished(replica_id))
    rests(node, "b", Rung.HOT)
    assert on_gpu(node, "c", need(home="gpu-0")) == state.Lower((("b", Rung.PARKED),))
    rests(node, "b", Rung.PARKED)
    command = on_gpu(node, "c", need(home="gpu-0"))
    assert isinstance(command, state.Start)
    assert command.bring
    assert (command.bring.gpu, command.bring.own) == ("gpu-1", True)


def test_a_hot_one_with_weights_of_its_own_pins_nothing() -> None:
    node = NodeState(64 * GIB, 8, [gpu(14, arena=4)])
    on_gpu(node, "a", need(home="gpu-9"))
    node.handle(state.ClimbFinished("a"))
    rests(node, "a", Rung.HOT)
    on_gpu(node, "b", need("w2"))
    assert list(node.gpus["gpu-0"].pinned) == ["w2"]
    node.handle(state.ClimbFinished("b"))
    assert node.handle(state.ThawRequested("a")) == state.Thaw("a", None, stopped=False)
    assert list(node.gpus["gpu-0"].pinned) == ["w2"]


def test_one_smaller_than_a_context_gives_what_lowering_it_promises() -> None:
    node = NodeState(64 * GIB, 8, [GpuState("gpu-0", 9 * GIB, 0, 3 * GIB)])
    on_gpu(node, "a", need(private=1, home="gpu-9"))
    node.handle(state.ClimbFinished("a"))
    rests(node, "a", Rung.HOT)
    assert on_gpu(node, "b", need("w2", size=5, private=3)) == state.Lower((("a", Rung.PARKED),))
    rests(node, "a", Rung.PARKED)
    assert isinstance(on_gpu(node, "b", need("w2", size=5, private=3)), state.Start)


def test_a_copy_that_is_shared_goes_for_one_that_is_not() -> None:
    node = NodeState(64 * GIB, 8, [gpu(10)])
    on_gpu(node, "a", need())
    node.handle(state.ClimbFinished("a"))
    rests(node, "a", Rung.HOT)
    assert on_gpu(node, "b", need(home="gpu-9")) == state.Lower((("a", Rung.PARKED),))
    rests(node, "a", Rung.PARKED)
    command = on_gpu(node, "b", need(home="gpu-9"))
    assert isinstance(command, state.Start)
    assert command.bring
    assert command.bring.drop_device == ("w",)


class Vaults:
    """What the vaults have, when they do as they are told and nothing fails."""

    def __init__(self) -> None:
        self.device: set[tuple[str, str]] = set()  # GPU, weights
        self.host: set[tuple[str, str]] = set()

    def bring(self, command: state.Command) -> None:
        bring = command.bring if isinstance(command, state.Start | state.Thaw) else None
        if bring is None:
            return
        place = (bring.gpu, bring.weights)
        self.device -= {(bring.gpu, weights) for weights in bring.drop_device}
        self.host -= {(bring.gpu, weights) for weights in bring.drop_host}
        if bring.host and place not in self.device:
            self.host.add(place)
        if not bring.own:
            self.device.add(place)

    def lose(self, gpu: GpuState, weights: str) -> None:
        """As the loop does after a climb that failed."""
        if weights not in gpu.weights:
            self.device.discard((gpu.uuid, weights))
            self.host.discard((gpu.uuid, weights))

    def check(self, gpu: GpuState) -> None:
        assert {weights for uuid, weights in self.device if uuid == gpu.uuid} <= set(gpu.weights)
        assert {weights for uuid, weights in self.host if uuid == gpu.uuid} <= set(gpu.pinned)


class GpuMachine(RuleBasedStateMachine):
    """Whatever is asked, in any order: no GPU is promised twice, and what is lowered was at rest."""

    def __init__(self) -> None:
        super().__init__()
        self.node = NodeState(
            64 * GIB, 4, [gpu(13, 5), GpuState("gpu-1", 9 * GIB, 4 * GIB, 2 * GIB)]
        )
        self.vaults = Vaults()

    @rule(
        replica_id=IDS,
        weights=st.sampled_from("xyz"),
        private=st.integers(1, 3),
        home=HOMES,
    )
    def start(self, replica_id: str, weights: str, private: int, home: str) -> None:
        if replica_id in self.node.promises:
            return
        wanted = need(weights, SIZES[weights], private, home)
        self.with_room(lambda: on_gpu(self.node, replica_id, wanted))
        if replica_id not in self.node.promises:
            for each in self.node.gpus.values():
                missing = each.missing_bytes(wanted, 0)
                assert len(self.node.promises) == 4 or missing > 0
                assert len(self.node.promises) == 4 or not each.lower(missing, wanted, replica_id)

    @rule(replica_id=IDS, yields=st.lists(IDS, unique=True))
    def thaw(self, replica_id: str, yields: list[str]) -> None:
        asked = state.ThawRequested(replica_id, tuple(yields))
        self.with_room(lambda: self.node.handle(asked))

    def with_room(self, ask: Callable[[], state.Command]) -> None:
        command = ask()
        if isinstance(command, state.Lower):
            self.lower(command)
            command = ask()
            assert not isinstance(command, state.Lower | state.Refuse), "no room came"
        self.vaults.bring(command)

    def lower(self, command: state.Lower) -> None:
        for replica_id, rung in command.replicas:
            assert self.node.promises[replica_id].state in (ReplicaState.HOT, ReplicaState.PARKED)
            self.node.handle(state.DescendRequested(replica_id, rung))
            self.node.check()
            if rung is Rung.FROZEN:
                self.node.handle(state.ReplicaEnded(replica_id))
            else:
                self.node.handle(state.DescendFinished(replica_id, ReplicaState.PARKED))

    @rule(replica_id=IDS)
    def starts_cold(self, replica_id: str) -> None:
        promise = self.node.promises.get(replica_id)
        if promise and promise.state is ReplicaState.CLIMBING:
            occupant = self.node.gpus[promise.gpu].occupants[replica_id]
            if not occupant.uses:
                self.vaults.bring(self.node.handle(state.ColdRequested(replica_id)))

    @rule(replica_id=IDS)
    def climbed(self, replica_id: str) -> None:
        promise = self.node.promises.get(replica_id)
        if promise and promise.state is ReplicaState.CLIMBING:
            self.node.handle(state.ClimbFinished(replica_id))

    @rule(replica_id=IDS, rung=st.sampled_from([Rung.HOT, Rung.PARKED, Rung.FROZEN]))
    def descend(self, replica_id: str, rung: Rung) -> None:
        self.node.handle(state.DescendRequested(replica_id, rung))

    @rule(replica_id=IDS, to=st.sampled_from(["hot", "parked", "serving"]))
    def descended(self, replica_id: str, to: str) -> None:
        promise = self.node.promises.get(replica_id)
        if promise and promise.state is ReplicaState.DESCENDING:
            occupant = self.node.gpus[promise.gpu].occupants[replica_id]
            has_them = (
                occupant.uses or 0 < occupant.need.own_bytes(promise.gpu) < occupant.held_bytes
            )
            if has_them or to == "parked":
                self.node.handle(state.DescendFinished(replica_id, ReplicaState(to)))

    @rule(weights=st.sampled_from("xyz"), private=st.integers(1, 3), home=HOMES)
    def proof(self, weights: str, private: int, home: str) -> None:
        if self.node.proofs:
            self.node.handle(state.ProofEnded("proof"))
        wanted = need(weights, SIZES[weights], private, home)
        command = self.node.handle(state.ProofRequested("proof", wanted))
        assert not isinstance(command, state.Lower), "a proof makes nobody go"
        self.vaults.bring(command)

    @rule(replica_id=IDS)
    def ends(self, replica_id: str) -> None:
        self.node.handle(state.ReplicaEnded(replica_id))

    @rule(weights=st.sampled_from("xyz"))
    def lost(self, weights: str) -> None:
        self.node.handle(state.WeightsLost("gpu-0", weights))
        self.vaults.lose(self.node.gpus["gpu-0"], weights)

    @invariant()
    def holds(self) -> None:
        self.node.check()
        for each in self.node.gpus.values():
            self.vaults.check(each)


TestGpuMachine = GpuMachine.TestCase

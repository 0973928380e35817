"""A router that reads slowly gets the newest state."""

from contextlib import aclosing

from woodfrog.model.placement import ReadyReplica, TrackUpdate
from woodfrog.scheduler.tracks import Track

F1 = ReadyReplica("f1", "frog", "a", "/run/f1", 2)
F2 = ReadyReplica("f2", "frog", "a", "/run/f2", 2)


async def test_first_everything_then_changes_run_together() -> None:
    track = Track([F1])
    async with aclosing(track.updates()) as updates:
        assert await anext(updates) == TrackUpdate(True, (F1,))
        track.announce((F2,), ("f1",))
        track.announce((F1,), ())
        track.announce((), ("f2",))
        assert await anext(updates) == TrackUpdate(False, (F1,), ("f2",))
        track.announce((), (), ("f1",))
        track.announce((F1,), (), ("f2", "f1"))
        assert await anext(updates) == TrackUpdate(False, (F1,), (), ("f1", "f2"))
        track.announce((F2,), ())
        track.close()
        assert [update async for update in updates] == [TrackUpdate(False, (F2,))]

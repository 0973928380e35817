from hypothesis import given
from hypothesis import strategies as st

from woodfrog.model import digest as digests
from woodfrog.model.manifest import CHUNK_BYTES, FileEntry, Kind, Manifest
from woodfrog.weight_fs.presence import ABSENT, PRESENT, SUSPECT, Presence

STATES = st.sampled_from([ABSENT, SUSPECT, PRESENT])


def _entry(index: int, size_bytes: int, zero: bool) -> FileEntry:
    count = -(-size_bytes // CHUNK_BYTES)
    chunks = tuple(None if zero else digests.of_bytes(b"%d.%d" % (index, n)) for n in range(count))
    return FileEntry(f"file{index}", size_bytes, chunks)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    sizes = draw(st.lists(st.tuples(st.integers(0, 3 * CHUNK_BYTES), st.booleans()), max_size=4))
    return Manifest(Kind.WEIGHTS, tuple(_entry(i, *size) for i, size in enumerate(sizes)), {})


@given(manifests(), st.data())
def test_counts_follow_the_states(manifest: Manifest, data: st.DataObject) -> None:
    presence = Presence(manifest)
    flat = [(file, n) for file in manifest.files for n in range(len(file.chunks))]
    assert [presence.entry(number) for number in range(len(presence))] == flat
    states = [ABSENT] * len(flat)
    for number, state in data.draw(
        st.lists(st.tuples(st.integers(0, max(len(flat) - 1, 0)), STATES), max_size=20)
    ):
        if flat:
            presence.set(number, state)
            states[number] = state
    weights = [file.chunk_bytes(n) if file.chunks[n] else 0 for file, n in flat]
    assert presence.size_bytes == sum(weights)
    assert presence.present_bytes == sum(
        w for w, s in zip(weights, states, strict=True) if s == PRESENT
    )
    assert presence.complete == all(state == PRESENT for state in states)
    assert list(presence.suspects()) == [n for n, s in enumerate(states) if s == SUSPECT]


@given(manifests(), st.data())
def test_an_extent_names_just_the_chunks_that_it_touches(
    manifest: Manifest, data: st.DataObject
) -> None:
    presence = Presence(manifest)
    for index, file in enumerate(manifest.files):
        offset = data.draw(st.integers(0, file.size_bytes + 10))
        length = data.draw(st.integers(0, file.size_bytes + 10))
        end = file.size_bytes if length == 0 else min(file.size_bytes, offset + length)
        touched = [
            presence.first[index] + n
            for n in range(len(file.chunks))
            if max(offset, n * CHUNK_BYTES) < min(end, n * CHUNK_BYTES + file.chunk_bytes(n))
        ]
        assert list(presence.numbers(index, offset, length)) == touched

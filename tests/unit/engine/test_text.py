"""Text leaves whole and never shows a stop string, however it is cut into tokens."""

from hypothesis import given
from hypothesis import strategies as st

from woodfrog.engine.text import Detokenizer, StopMatcher


def decode_bytes(tokens: list[int]) -> str:
    """A tokenizer whose tokens are bytes."""
    return bytes(tokens).decode(errors="replace")


def first_stop(text: str, stops: list[str]) -> str | None:
    """The reference: read character by character, stop where the first stop string is complete."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return None


@given(st.text("aä€𝄞\n"))
def test_pieces_are_whole_characters_and_lose_nothing(text: str) -> None:
    detokenizer = Detokenizer(decode_bytes)
    pieces = [detokenizer.feed(byte) for byte in text.encode()]
    assert "".join(pieces) + detokenizer.flush() == text
    assert not any("�" in piece for piece in pieces)


@given(st.binary())
def test_bytes_that_are_no_text_come_out_as_the_decoder_shows_them(data: bytes) -> None:
    detokenizer = Detokenizer(decode_bytes)
    text = "".join(detokenizer.feed(byte) for byte in data) + detokenizer.flush()
    assert text == data.decode(errors="replace")


@given(
    st.lists(st.text("ab", max_size=4)),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
)
def test_stops_do_not_depend_on_how_text_is_cut(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    out, stopped = "", False
    for piece in pieces:
        passed, stopped = matcher.feed(piece)
        out += passed
        if stopped:
            break
    expected = first_stop("".join(pieces), stops)
    if expected is None:
        assert not stopped
        assert out + matcher.flush() == "".join(pieces)
    else:
        assert stopped
        assert out == expected
        assert matcher.flush() == ""


def test_text_is_held_back_only_while_it_may_become_a_stop() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.feed("so E") == ("so ", False)
    assert matcher.feed("N") == ("", False)
    assert matcher.feed("G") == ("ENG", False)
    assert matcher.feed("...EN") == ("...", False)
    assert matcher.feed("D and more") == ("", True)

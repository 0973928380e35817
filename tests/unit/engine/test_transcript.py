"""Where an answer ends, and what may leave with it."""

from woodfrog.engine.request import Piece, TokenLogprob
from woodfrog.engine.transcript import Transcript

EOS = 0


def decode(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def transcript(stops: list[str] | None = None, max_tokens: int = 100) -> Transcript:
    return Transcript(decode, stops or [], {EOS}, max_tokens)


def logprobs(text: str) -> list[TokenLogprob]:
    return [TokenLogprob(byte, -1.0, []) for byte in text.encode()]


def test_eos_ends_the_answer_and_shows_nothing() -> None:
    piece = transcript().add([*b"hi", EOS], logprobs("hi\0"))
    assert (piece.text, piece.finish_reason, piece.token_count) == ("hi", "stop", 3)
    assert [entry.token for entry in piece.logprobs] == list(b"hi")


def test_the_limit_ends_the_answer_with_length() -> None:
    assert transcript(max_tokens=2).add(list(b"hi"), []) == Piece("hi", [], 2, "length")


def test_a_stop_string_over_several_tokens_never_shows() -> None:
    answer = transcript(["END"])
    assert answer.add(list(b"go E"), []).text == "go "
    assert answer.add(list(b"N"), []).text == ""
    assert answer.add(list(b"Dxyz"), []) == Piece("", [], 1, "stop")


def test_held_text_leaves_when_the_answer_ends_otherwise() -> None:
    answer = transcript(["END"], max_tokens=4)
    assert answer.add(list(b"go"), []).text == "go"
    assert answer.add(list(b"EN"), []) == Piece("EN", [], 2, "length")


def test_logprobs_leave_with_their_text_and_those_of_a_stop_string_never() -> None:
    answer = transcript(["END"])
    first = answer.add(list(b"aE"), logprobs("aE"))
    second = answer.add(list(b"ND"), logprobs("ND"))
    assert [entry.token for entry in first.logprobs] == list(b"a")
    assert second == Piece("", [], 2, "stop")


def test_a_character_cut_off_by_the_limit_is_shown_as_torn() -> None:
    torn = "ä".encode()[:1]
    assert transcript(max_tokens=1).add(list(torn), []) == Piece("�", [], 1, "length")


def test_nothing_is_used_after_the_end() -> None:
    piece = transcript().add([*b"a", EOS, *b"bc"], logprobs("a\0bc"))
    assert (piece.text, piece.token_count, len(piece.logprobs)) == ("a", 2, 1)

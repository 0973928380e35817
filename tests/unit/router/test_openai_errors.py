import json

import pytest

from woodfrog import errors
from woodfrog.router import openai_errors

CLASSES = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and cls is not errors.WoodfrogError
]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_has_a_status_that_leads_back(cls: type[errors.WoodfrogError]) -> None:
    refusal = openai_errors.refusal(cls("SOME_REASON", "what happened", param="model"))
    assert json.loads(refusal.body) == {
        "error": {
            "message": "what happened",
            "type": refusal.error["type"],
            "param": "model",
            "code": "some_reason",
        }
    }
    back = openai_errors.from_engine(refusal.status, refusal.body, None)
    assert (back.reason, back.message, back.metadata) == (
        "SOME_REASON", "what happened", {"param": "model"}
    )  # fmt: skip
    assert (refusal.status >= 500) == isinstance(
        back, errors.Internal | errors.Unavailable | errors.DeadlineExceeded
    )


def test_time_to_come_back_in_both_headers() -> None:
    error = errors.ResourceExhausted("FULL", "full", retry_after_s=0.0123)
    assert openai_errors.refusal(error).headers == [
        (b"retry-after-ms", b"13"),
        (b"retry-after", b"1"),
    ]
    assert openai_errors.refusal(errors.Unavailable("X", "x")).headers == []


def test_what_only_an_operator_can_mend_is_not_to_be_asked_again() -> None:
    told = openai_errors.refusal(errors.FailedPrecondition("NO_NODE_FITS", "too large"))
    assert told.status == 503
    assert told.headers == [(b"x-should-retry", b"false")]


def test_a_used_up_budget_has_openais_type_and_is_not_to_be_asked_again() -> None:
    told = openai_errors.refusal(errors.ResourceExhausted("INSUFFICIENT_QUOTA", "used up"))
    assert (told.status, told.error["type"]) == (429, "insufficient_quota")
    assert told.headers == [(b"x-should-retry", b"false")]
    passing = openai_errors.refusal(errors.ResourceExhausted("RATE_LIMIT_EXCEEDED", "wait"))
    assert passing.error["type"] == "rate_limit_error"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": "text"}', b"{}", b"\xff"])
def test_engines_error_without_an_object_is_named_after_its_status(body: bytes) -> None:
    error = openai_errors.from_engine(502, body, b"soon")
    assert isinstance(error, errors.Internal)
    assert error.reason == "ENGINE_ERROR"
    assert "502" in error.message
    assert error.retry_after_s is None


def test_engines_error_keeps_its_time() -> None:
    error = openai_errors.from_engine(429, b"{}", b"1500")
    assert isinstance(error, errors.ResourceExhausted)
    assert error.retry_after_s == 1.5


def test_error_event_is_classed_by_its_type() -> None:
    event = {"message": "too much", "type": "rate_limit_error", "code": None, "param": None}
    assert isinstance(openai_errors.from_event(event), errors.ResourceExhausted)
    assert isinstance(openai_errors.from_event({"message": "x"}), errors.Internal)
    assert isinstance(
        openai_errors.from_event({"type": "invalid_request_error"}), errors.InvalidArgument
    )
    assert openai_errors.from_event({"type": "server_error", "code": "oom"}).reason == "OOM"


@pytest.mark.parametrize("body", [b"", b"<h1>502</h1>\n\ndata: {}", b"[1]", b'{"error": {"mess'])
def test_what_is_no_error_of_openais_becomes_one_in_a_line(body: bytes) -> None:
    said = json.loads(openai_errors.in_a_line(502, body))["error"]
    assert (said["message"], said["code"]) == (
        "the engine answered with status 502",
        "engine_error",
    )


def test_an_engines_error_keeps_its_words_in_a_line() -> None:
    error = {"message": "a\nb", "type": "server_error", "param": None, "code": "x"}
    said = openai_errors.in_a_line(500, json.dumps({"error": error}, indent=2).encode())
    assert b"\n" not in said
    assert json.loads(said) == {"error": error}

import pytest

from woodfrog.router.http_request import Arrival, parse_body
from woodfrog.router.openai_errors import Refusal


def arrival(**headers: str) -> Arrival:
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return Arrival("POST", "/v1/chat/completions", named)


@pytest.mark.parametrize(
    ("sent", "stream", "expected"),
    [
        ("600", False, 120.0),
        ("10", False, 9.5),
        ("10", True, 120.0),  # comments renew a stream's time-out
        ("0", False, 120.0),
        ("-1", False, 120.0),
        ("nan", False, 120.0),
        ("inf", False, 120.0),
        ("NOT_GIVEN", False, 120.0),
    ],
)
def test_wait_is_bounded_by_the_cap_and_the_clients_timeout(
    sent: str, stream: bool, expected: float
) -> None:
    assert arrival(x_stainless_read_timeout=sent).wait_s(120.0, stream=stream) == expected


def test_request_id_of_the_client_is_kept_when_it_is_plain() -> None:
    assert arrival(x_request_id="abc-1").request_id == "abc-1"
    for sent in ("", "a b", "a\r\nb", "é", "x" * 129):
        assert arrival(x_request_id=sent).request_id.startswith("req_")


def test_what_the_client_says_of_itself_is_told() -> None:
    assert arrival().client_attributes == {}
    assert arrival(x_stainless_retry_count="0").client_attributes == {}
    assert arrival(x_stainless_retry_count="x").client_attributes == {}
    assert arrival(x_stainless_read_timeout="0").client_attributes == {}
    said = arrival(x_stainless_retry_count="2", x_stainless_read_timeout="1.5").client_attributes
    assert said == {"woodfrog.client_retry_count": 2, "woodfrog.client_timeout_s": 1.5}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model": "m"}', ("m", False)),
        (b'{"model": "org/m", "stream": true}', ("org/m", True)),
        (b'{"model": "m", "stream": null}', ("m", False)),
        (b'{"model": "m", "stream": "true"}', ("m", False)),  # the engine says what is wrong
        (b' {"n": NaN, "model": "m"}\n', ("m", False)),
    ],
)
def test_model_and_stream_are_read(body: bytes, expected: tuple[str, bool]) -> None:
    assert parse_body(body) == expected


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"null", "invalid_json"),
        (b'{"model": "m"', "invalid_json"),
        (b'{"model": "\xff"}', "invalid_json"),
        (b'{"a":' * 50_000, "invalid_json"),
        (b'{"n": ' + b"9" * 10_000 + b"}", "invalid_json"),
        (b'{"model": ""}', "missing_model"),
        (b'{"model": null}', "missing_model"),
    ],
)
def test_bodies_that_are_refused(body: bytes, code: str) -> None:
    with pytest.raises(Refusal) as refusal:
        parse_body(body)
    assert (refusal.value.status, refusal.value.error["code"]) == (400, code)
    assert len(str(refusal.value)) < 300

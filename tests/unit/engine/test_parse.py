"""OpenAI request bodies: what is taken, what is refused, and which parameter is named."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodfrog.engine.parse import Limits, chat_request, completion_request
from woodfrog.engine.request import GenerationRequest
from woodfrog.errors import InvalidArgument

LIMITS = Limits(context_tokens=32, vocabulary_size=256, sequences=4)
HELLO = [{"role": "user", "content": "hello"}]


def chat(**body: Any) -> GenerationRequest:
    def encode(messages: list[dict[str, Any]]) -> list[int]:
        return list("".join(m["content"] for m in messages).encode())

    return chat_request({"messages": HELLO, **body}, LIMITS, encode)


def completion(**body: Any) -> GenerationRequest:
    return completion_request(
        body, LIMITS, lambda text: list(text.encode()), lambda tokens: bytes(tokens).decode()
    )


def test_an_empty_chat_request_gets_openai_defaults() -> None:
    request = chat(unknown_field="ignored", temperature=None)
    assert request.prompts == [list(b"hello")]
    assert request.max_tokens == 32 - 5
    assert request.sampling.temperature == 1.0
    assert (request.n, request.stream, request.stops) == (1, False, [])


def test_content_parts_are_joined_and_developer_speaks_as_system() -> None:
    seen: list[dict[str, Any]] = []

    def encode(messages: list[dict[str, Any]]) -> list[int]:
        seen.extend(messages)
        return [1]

    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": parts}, {"role": "assistant", "content": None}]
    chat_request({"messages": messages}, LIMITS, encode)
    assert seen == [{"role": "system", "content": "ab"}, {"role": "assistant", "content": ""}]


def test_newer_limit_wins_over_max_tokens() -> None:
    assert chat(max_completion_tokens=3, max_tokens=9).max_tokens == 3


def test_logprobs_of_chat_and_of_completions() -> None:
    assert chat().sampling.logprobs is None
    assert chat(logprobs=True).sampling.logprobs == 0
    assert chat(logprobs=True, top_logprobs=5).sampling.logprobs == 5
    assert completion(prompt="a", logprobs=2).sampling.logprobs == 2


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [[97, 98]]),
        (["a", "b"], [[97], [98]]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_forms_of_a_prompt(prompt: Any, expected: list[list[int]]) -> None:
    assert completion(prompt=prompt).prompts == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", []),
        ("messages", "hello"),
        ("messages", None),
        ("messages[0]", ["hello"]),
        ("messages[0].role", [{"role": "judge", "content": ""}]),
        ("messages[0].content", [{"role": "user", "content": 1}]),
        ("messages[0].content", [{"role": "user", "content": None}]),
        ("messages[0].content[0].type", [{"role": "user", "content": [{"type": "image_url"}]}]),
        ("messages[0].content[0].text", [{"role": "user", "content": [{"type": "text"}]}]),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("n", 0),
        ("n", 5),
        ("seed", "x"),
        ("seed", 1 << 63),
        ("stop", ["a"] * 5),
        ("stop", [1]),
        ("stop", {}),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("frequency_penalty", 2.5),
        ("presence_penalty", -2.5),
        ("repetition_penalty", 0),
        ("logit_bias", {"256": 1}),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": float("nan")}),
        ("logit_bias", [1]),
        ("top_logprobs", 1),
        ("response_format", {"type": "json_object"}),
        ("tool_choice", "required"),
    ],
)
def test_what_a_chat_request_may_not_say(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        chat(**{field.partition("[")[0]: value})
    assert refusal.value.metadata["param"] == field


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("prompt", {}),
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": [[]]}),
        ("prompt", {"prompt": [1, "a"]}),
        ("prompt", {"prompt": [256]}),
        ("prompt", {"prompt": [-1]}),
        ("prompt", {"prompt": ["a"] * 5}),
        ("n", {"prompt": ["a", "b"], "n": 3}),
        ("echo", {"prompt": "a", "echo": True, "logprobs": 1}),
        ("suffix", {"prompt": "a", "suffix": "b"}),
        ("best_of", {"prompt": "a", "best_of": 2}),
        ("logprobs", {"prompt": "a", "logprobs": 21}),
    ],
)
def test_what_a_completion_request_may_not_say(field: str, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        completion(**body)
    assert refusal.value.metadata["param"] == field


@pytest.mark.parametrize(
    "body", [{"max_tokens": 28}, {"messages": [{"role": "user", "content": "x" * 32}]}]
)
def test_what_does_not_fit_into_the_context(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        chat(**body)
    assert refusal.value.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert refusal.value.metadata["param"] == "messages"


def test_the_whole_context_may_be_used() -> None:
    assert chat(max_tokens=27).max_tokens == 27


def test_temperatures_too_cold_to_divide_by_are_greedy() -> None:
    assert chat(temperature=1e-40).sampling.temperature == 0.0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("a1", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("a1", max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = [
    *(
        "messages",
        "prompt",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "n",
    ),
    *("stop", "seed", "stream", "stream_options", "logit_bias", "logprobs", "top_logprobs", "echo"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "response_format", "best_of"),
]


# What lies deeper: messages and their parts with anything in each field, and keys of any length.
parts = st.fixed_dictionaries(
    {}, optional={"type": json_values | st.just("text"), "text": json_values}
)
messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional={"role": json_values | st.just("user"), "content": json_values | st.lists(parts)},
    )
)
digits = st.integers(1, 6000).map(lambda count: "1" * count)
deeper = st.fixed_dictionaries(
    {}, optional={"messages": messages, "logit_bias": st.dictionaries(digits, json_values)}
)


@given(st.dictionaries(st.sampled_from(FIELDS), json_values), deeper, st.booleans())
def test_any_json_is_taken_or_refused(
    fields: dict[str, Any], deep: dict[str, Any], as_chat: bool
) -> None:
    body = fields | deep
    try:
        request = chat(**body) if as_chat else completion(**{"prompt": "a", **body})
    except InvalidArgument:
        return
    longest = max(map(len, request.prompts))
    assert 1 <= request.max_tokens <= LIMITS.context_tokens - longest
    assert 1 <= request.n * len(request.prompts) <= LIMITS.sequences


def test_images_stay_parts_where_they_are_taken() -> None:
    seen: list[Any] = []

    def encode(messages: list[dict[str, Any]]) -> list[int]:
        seen.extend(messages)
        return [1]

    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:x", "detail": "high"}},
        {"type": "image_url", "image_url": "data:y"},
    ]
    body = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]}
    chat_request(body, LIMITS, encode, images_max=2)
    place = "messages[1].content"
    assert seen[0]["content"] == [{"type": "text", "text": "s"}]
    assert seen[1]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "image", "url": "data:x", "place": f"{place}[1].image_url"},
        {"type": "image", "url": "data:y", "place": f"{place}[2].image_url"},
    ]
    with pytest.raises(InvalidArgument, match="more than 1 images"):
        chat_request(body, LIMITS, encode, images_max=1)


@pytest.mark.parametrize("image", [None, 5, {}, {"url": None}, {"url": ["data:x"]}, []])
def test_an_image_without_its_url_is_named(image: Any) -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": image}]}]}
    with pytest.raises(InvalidArgument) as caught:
        chat_request(body, LIMITS, lambda messages: [1], images_max=2)
    assert caught.value.metadata["param"] == "messages[0].content[0].image_url"


@pytest.mark.parametrize(("tokens", "why"), [([], "empty"), ([1, 256], "outside 0 to 255")])
def test_a_chat_that_the_model_has_no_words_for_is_refused(tokens: list[int], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as caught:
        chat_request({"messages": HELLO}, LIMITS, lambda messages: tokens)
    assert caught.value.metadata["param"] == "messages"

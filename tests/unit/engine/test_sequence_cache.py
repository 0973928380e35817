"""Which lengths prompts are padded to, and that a cache has room for all that may follow."""

from hypothesis import given
from hypothesis import strategies as st

from woodfrog.engine.sequence_cache import LENGTH_MIN, cache_tokens, lengths, padded_length


@given(st.integers(16, 1 << 15), st.data())
def test_every_prompt_and_its_answer_fit(context: int, data: st.DataObject) -> None:
    prompt = data.draw(st.integers(1, context - 1))
    length = padded_length(prompt, context)
    assert length in lengths(context)
    assert prompt < length <= max(LENGTH_MIN, 2 * prompt)
    assert length + context - prompt <= cache_tokens(context)
    assert cache_tokens(context) <= max(1.5 * context, context + LENGTH_MIN) + 64


def test_the_lengths_of_a_context() -> None:
    assert lengths(1000) == [128, 256, 512, 1000]
    assert lengths(512) == [128, 256, 512]
    assert lengths(100) == [100]

"""Which words may come next, with a vocabulary of single bytes; and marks of calls that a tokenizer hides."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from woodfrog.engine.constraint import Grammars
from woodfrog.engine.formats import Schema
from woodfrog.engine.request import GREEDY, Sampling
from woodfrog.engine.sampling import Sampler
from woodfrog.engine.tokenizer import Tokenizer
from woodfrog.errors import InvalidArgument

END, MARK = "<end>", "[TOOL_CALLS]"
DIGITS = Schema(json.dumps({"enum": [11, 12]}), "response_format")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    alphabet = sorted(ByteLevel.alphabet())
    fast = FastTokenizer(BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    fast.pre_tokenizer, fast.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    fast.add_special_tokens([AddedToken(END), AddedToken(MARK)])
    fast.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path)


@pytest.fixture
def grammars(tmp_path: Path, tokenizer: Tokenizer) -> Grammars:
    # The model has words that its tokenizer lacks.
    return Grammars(tmp_path, tokenizer.vocabulary_size + 6, [256])


def chosen(tokenizer: Tokenizer, sampler: Sampler, likeliest: str) -> str:
    logits = torch.zeros(tokenizer.vocabulary_size + 6)
    logits[tokenizer.encode(likeliest, special=False)] = 5.0
    token = sampler.choose(logits)
    sampler.check()
    assert token is not None
    return tokenizer.bytes_of(token).decode()


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=1), Sampling(logit_bias={7: 100.0})])
def test_only_what_the_schema_allows_is_chosen(
    tokenizer: Tokenizer, grammars: Grammars, sampling: Sampling
) -> None:
    sampler = Sampler(sampling, [1], constraint=grammars.constraint(DIGITS))
    said = [chosen(tokenizer, sampler, letter) for letter in ("x", "x", "x")]
    assert said in (["1", "1", END], ["1", "2", END])


def test_copies_go_their_own_ways(tokenizer: Tokenizer, grammars: Grammars) -> None:
    first = grammars.constraint(DIGITS)
    one, two = (Sampler(GREEDY, [1], constraint=each) for each in (first.copy(), first.copy()))
    assert [chosen(tokenizer, one, letter) for letter in "11"] == ["1", "1"]
    assert [chosen(tokenizer, two, letter) for letter in "12"] == ["1", "2"]


def test_one_that_cannot_go_on_fails_alone(tokenizer: Tokenizer, grammars: Grammars) -> None:
    constraint = grammars.constraint(DIGITS)
    constraint.advance(tokenizer.encode("x", special=False)[0])
    sampler = Sampler(GREEDY, [1], constraint=constraint)
    assert sampler.choose(torch.zeros(tokenizer.vocabulary_size + 6)) is not None
    with pytest.raises(InvalidArgument) as failure:
        sampler.check()
    assert failure.value.reason == "SCHEMA_TOO_COMPLEX"


@pytest.mark.parametrize(
    "text",
    ['{"type": "frog"}', '{"enum": []}', '{"$ref": "#"}', "[" * 500, "NaN", '{"multipleOf": true}'],
)
def test_what_cannot_be_followed_is_refused(grammars: Grammars, text: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        grammars.constraint(Schema(text, "text.format"))
    assert refusal.value.metadata["param"] == "text.format"


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "integer", "multipleOf": 9_999_991}, "multipleOf"),
        ({"anyOf": [{"type": "number", "multipleOf": m} for m in (9.97, 991, 983)]}, "multipleOf"),
        ({"type": "object", "patternProperties": {f"^{n}": {} for n in range(65)}}, "patternProp"),
    ],
)
def test_what_would_take_minutes_is_refused(grammars: Grammars, schema: object, said: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        grammars.constraint(Schema(json.dumps(schema), "text.format"))
    assert said in refusal.value.message


@pytest.mark.parametrize("step", [0.01, 5, 86400, 1_000_000, 99_991])
def test_usual_multiples_are_followed(grammars: Grammars, step: float) -> None:
    schema = {"properties": {"multipleOf": {"type": "number", "multipleOf": step}}}
    assert not grammars.constraint(Schema(json.dumps(schema), "text.format")).broken


def test_marks_of_calls_are_seen_and_other_special_words_are_not(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(f"ä{MARK}b{END}", special=False)
    assert tokenizer.decode(tokens) == "äb"
    assert tokenizer.decoder_showing([MARK])(tokens) == f"ä{MARK}b"
    assert tokenizer.decoder_showing(["<tool_call>"]) == tokenizer.decode

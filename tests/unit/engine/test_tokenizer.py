"""Chat templates get what Transformers gives them."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from woodfrog.engine.tokenizer import Tokenizer
from woodfrog.errors import InvalidArgument

WORDS = ["<unk>", "user", "hi", "year", "ä"]
HI = [{"role": "user", "content": "hi"}]


def tokenizer(folder: Path, template: str) -> Tokenizer:
    fast = FastTokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    fast.pre_tokenizer = Whitespace()
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return Tokenizer(folder)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}", ["user", "hi"]),
        ("{% generation %}hi{% endgeneration %}", ["hi"]),
        ("{{ 'year' if strftime_now('%Y') | length == 4 }}", ["year"]),
        ("{{ 'ä' | tojson(ensure_ascii=False) | replace('\"', '') }}", ["ä"]),
        ("{% for n in [1, 2, 3] %}{% if n == 2 %}{% break %}{% endif %}hi {% endfor %}", ["hi"]),
    ],
)
def test_what_templates_may_use(tmp_path: Path, template: str, words: list[str]) -> None:
    tokens = tokenizer(tmp_path, template).encode_chat(HI)
    assert [WORDS[token] for token in tokens] == words


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no such role') }}",
        "{% for i in range(10**12) %}x{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages.__class__.__mro__ }}",
    ],
)
def test_what_a_template_refuses_is_the_client_s_error(tmp_path: Path, template: str) -> None:
    with pytest.raises(InvalidArgument, match="the model's chat template refuses the messages"):
        tokenizer(tmp_path, template).encode_chat(HI)


def test_a_broken_template_is_told_when_the_model_loads(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="the model's chat template cannot be read"):
        tokenizer(tmp_path, "{% if %}")

"""LiteLLM as a client: its functions against a running gateway.

python python_litellm.py BASE_URL MODEL ROUTE…
"""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import litellm

MESSAGES = [{"role": "user", "content": "Say a word."}]
NOBODY = {"model": "openai/nobody"}


def main() -> None:
    base_url, model, *routes = sys.argv[1:]
    to: Any = {"model": f"openai/{model}", "api_base": base_url, "api_key": "k", "num_retries": 0}
    short: Any = {"temperature": 0, "max_tokens": 8}
    if "chat" in routes:
        whole = litellm.completion(messages=MESSAGES, **to, **short)
        text = whole.choices[0].message.content
        assert text
        stream = litellm.completion(messages=MESSAGES, stream=True, **to, **short)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
        again = asyncio.run(litellm.acompletion(messages=MESSAGES, **to, **short))
        assert again.choices[0].message.content == text
    if "completions" in routes:
        to_text = {**to, "model": f"text-completion-openai/{model}"}
        assert litellm.text_completion(prompt="Once", **to_text, **short).choices[0].text
    if "embeddings" in routes:
        assert len(litellm.embedding(input=["a", "b"], **to).data) == 2
    if "responses" in routes:
        answer = litellm.responses(input="Say a word.", **to)
        assert answer.output[0].content[0].text
    if "tools" in routes:
        function = {"name": "pond", "parameters": {"type": "object"}}
        script = {"tools": [{"type": "function", "function": function}]}
        called = litellm.completion(
            messages=MESSAGES, **to, **script, extra_body={"simulate": {"calls": ["pond"]}}
        )
        assert called.choices[0].message.tool_calls[0].function.name == "pond"
    assert "nobody" in refusal(lambda: litellm.completion(messages=MESSAGES, **to | NOBODY))
    sys.stdout.write("ok\n")


def refusal(ask: Callable[[], Any]) -> str:
    try:
        ask()
    except litellm.NotFoundError as error:
        return str(error)
    raise AssertionError("no NotFoundError")


if __name__ == "__main__":
    main()

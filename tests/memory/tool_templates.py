"""The first layers of the real model with a chat template that shows tools, as models that were taught to call have one."""

import json
from pathlib import Path

from tests.capabilities import MODEL

HERMES = """\
{%- if tools %}<|im_start|>system
You may call these functions:
{%- for tool in tools %}
{{ tool.function | tojson }}
{%- endfor %}
Write a call as <tool_call>{"name": "...", "arguments": {...}}</tool_call>.<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


LAYERS = 4  # of 30: it writes nonsense, in whatever form it is held to, and in a fifth of the time


def with_tools(folder: Path, template: str = HERMES, layers: int = LAYERS) -> Path:
    """`folder`, which is new, with the model's files as links, of which it has the first `layers`."""
    folder.mkdir()
    for file in MODEL.iterdir():
        if file.name not in ("chat_template.jinja", "config.json"):
            (folder / file.name).symlink_to(file.resolve())
    (folder / "chat_template.jinja").write_text(template)
    config = json.loads((MODEL / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    return folder

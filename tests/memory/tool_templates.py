"""The real model's folder with a chat template that shows tools, as models that were taught to call have one."""

from pathlib import Path

from tests.capabilities import MODEL

_HERMES = """\
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


def with_tools(folder: Path) -> Path:
    """`folder`, which is new, with the model's files as links."""
    folder.mkdir()
    for file in MODEL.iterdir():
        if file.name != "chat_template.jinja":
            (folder / file.name).symlink_to(file.resolve())
    (folder / "chat_template.jinja").write_text(_HERMES)
    return folder

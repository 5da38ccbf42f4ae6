"""Chat templates of the kinds that models bring, made for tests."""

from __future__ import annotations

from raylm.chat.template import ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

# Turns between two tokens, a system turn of its own where a conversation has none, calls and tools as JSON.
CHATML = """
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if loop.first and tools %}{{ 'Tools: ' + (tools | tojson) + '\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}{{ '<call>' + (call.function | tojson) + '</call>' }}{% endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# The same with what the model says marked.
MARKED = CHATML.replace(
    "{{- message.content }}",
    "{%- if message.role == 'assistant' %}{% generation %}{{- message.content }}",
).replace(
    "{{- '<|im_end|>\n' }}",
    "{{- '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ message.content + '<|im_end|>\n' }}{% endif %}",
)

# Knows three roles and contents only.
PLAIN = """{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"""

# Wants users and assistants in turn, and no system.
STRICT = """{% for message in messages %}
{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{ message.role }}: {{ message.content | trim }}<eot>
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""

# Shows the thought of the last answer only.
THINKING = """{% for message in messages %}<{{ message.role }}>
{%- if message.reasoning_content and loop.last %}<think>{{ message.reasoning_content }}</think>{% endif %}
{{- message.content }}<eot>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""

# Ends a conversation with a token that stands behind the last turn only.
CLOSING = """{% for message in messages %}<{{ message.role }}>{{ message.content }}<end>
{% endfor %}{% if add_generation_prompt %}<assistant>{% else %}{{ eos_token }}{% endif %}"""

# Begins an answer with what stands before no answer in the whole text.
OPENING = """{% for message in messages %}<{{ message.role }}>{{ message.content }}<end>{% endfor %}
{%- if add_generation_prompt %}<assistant><think>{% endif %}"""


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, "a test", TOKENS)

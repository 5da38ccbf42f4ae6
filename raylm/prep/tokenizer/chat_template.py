"""Which chat template: the model's own, one of a name, or a file of Jinja."""

from __future__ import annotations

from collections.abc import Mapping

from raylm.chat.template import ChatTemplate
from raylm.errors import ConfigError, DataError
from raylm.prep.tokenizer.folder import CONFIG, mapping_in, read_configs, token_in
from raylm.storage import Connection, NotFound, StoragePath

# Each marks what the assistant says, so that no answer has to be found.
NAMED: Mapping[str, str] = {
    "chatml": """
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else %}{{ message.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "alpaca": """
{%- for message in messages %}
{%- if message.role == 'system' %}{{ message.content + '\\n\\n' }}
{%- elif message.role == 'user' %}{{ '### Instruction:\\n' + message.content + '\\n\\n' }}
{%- elif message.role == 'assistant' %}{{ '### Response:\\n' }}
{%- generation %}{{ message.content + eos_token }}{% endgeneration %}{{ '\\n\\n' }}
{%- else %}{{ raise_exception('the template alpaca has no role ' + message.role) }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}""",
    "plain": """
{%- for message in messages %}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content + eos_token }}{% endgeneration %}
{%- else %}{{ message.content + '\\n' }}{% endif %}
{%- endfor %}""",
}
_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def chosen_template(tokenizer: StoragePath, wanted: str | None, connection: Connection) -> ChatTemplate:
    """The template that a job asks for: None for the tokenizer's own, a name, or the path or URL of a Jinja file.

    `tokenizer` is the folder of the tokenizer, whose tokens the template may name.
    """
    tokens = special_tokens(tokenizer)
    if wanted is None:
        source = own_template(tokenizer)
        if source is None:
            raise DataError(
                f"the tokenizer in {tokenizer.url} has no chat template",
                hint=f"choose one, chat.template: {', '.join(sorted(NAMED))}, or the path of a Jinja file",
            )
        return ChatTemplate(source, tokenizer.url, tokens)
    if wanted in NAMED:
        return _named(wanted, tokenizer, tokens)
    file = StoragePath(wanted, connection)
    try:
        return ChatTemplate(file.read_bytes().decode(), wanted, tokens)
    except NotFound as error:
        raise ConfigError(
            f"there is no chat template {wanted}",
            hint=f"give the path of a Jinja file, or one of {', '.join(sorted(NAMED))}",
            key="chat.template",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{wanted} is not UTF-8 text", hint="give a Jinja file", key="chat.template") from error


def own_template(tokenizer: StoragePath) -> str | None:
    """The template that a model's folder brings, as transformers looks for it; None where it has none."""
    file = tokenizer / "chat_template.jinja"
    if file.is_file():
        return file.read_bytes().decode()
    for place in (tokenizer / "chat_template.json", tokenizer / CONFIG):
        found = mapping_in(place).get("chat_template") if place.is_file() else None
        if isinstance(found, list):  # several, by name
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, Mapping)}
            found = named.get("default")
        if isinstance(found, str):
            return found
    return None


def special_tokens(tokenizer: StoragePath) -> dict[str, str]:
    """The special tokens by the names that templates use, as the folder's configs say."""
    configs = read_configs(tokenizer)
    return {name: token for name in _TOKENS if (token := token_in(configs, name)) is not None}


def _named(name: str, tokenizer: StoragePath, tokens: Mapping[str, str]) -> ChatTemplate:
    source = NAMED[name]
    if "eos_token" in source and "eos_token" not in tokens:
        raise DataError(
            f"the template {name} ends a turn with the end of text, and {tokenizer.url} names none",
            hint="set eos_token in its tokenizer_config.json, or choose chat.template: chatml",
        )
    return ChatTemplate(source, f"the name {name}", tokens)

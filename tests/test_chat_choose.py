"""The chat template is the model's own, one of a name, or a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raylm.chat.conversation import Conversation, Message, ToolCall
from raylm.chat.examples import examples
from raylm.chat.render import ContentDropped, Renderer
from raylm.errors import ConfigError, DataError
from raylm.prep.tokenizer.chat_template import NAMED, chosen_template, own_template, special_tokens
from raylm.storage import Connection, StoragePath
from tests.chat_templates import CHATML

HERE = Connection()
SEVERAL = [{"name": "rag", "template": "x"}, {"name": "default", "template": CHATML}]
TALK = Conversation(
    (Message("user", "Hi"), Message("assistant", "Yes"), Message("user", "Bye"), Message("assistant", "So"))
)


def folder(path: Path, **files: Any) -> StoragePath:
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(content if isinstance(content, str) else json.dumps(content))
    return StoragePath(str(path))


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template__jinja": CHATML, "tokenizer_config__json": {"chat_template": "another"}},
        {"tokenizer_config__json": {"chat_template": CHATML}},
        {"chat_template__json": {"chat_template": CHATML}},
        {
            "tokenizer_config__json": {
                "chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": CHATML}]
            }
        },
    ],
)
def test_the_models_own_template_is_found_where_transformers_finds_it(tmp_path: Path, files: dict[str, Any]) -> None:
    there = folder(tmp_path, **files)
    made = chosen_template(there, None, HERE)
    assert (made.source, made.origin) == (CHATML, there.url)


def test_a_tokenizer_without_a_template_asks_for_one(tmp_path: Path) -> None:
    there = folder(tmp_path, tokenizer_config__json={"eos_token": "</s>"})
    assert own_template(there) is None
    with pytest.raises(DataError, match="has no chat template") as found:
        chosen_template(there, None, HERE)
    assert "chat.template: alpaca, chatml, plain, or the path of a Jinja file" in str(found.value.hint)


def test_special_tokens_are_texts_or_records(tmp_path: Path) -> None:
    there = folder(
        tmp_path,
        special_tokens_map__json={"bos_token": "<old>", "pad_token": "<pad>"},
        tokenizer_config__json={
            "bos_token": {"content": "<s>", "lstrip": False},
            "eos_token": "</s>",
            "unk_token": None,
        },
    )
    assert special_tokens(there) == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def test_a_file_is_read_and_what_is_none_is_told(tmp_path: Path) -> None:
    there = folder(tmp_path, mine__jinja=CHATML, tokenizer_config__json={})
    assert chosen_template(there, str(tmp_path / "mine.jinja"), HERE).source == CHATML
    with pytest.raises(ConfigError, match="there is no chat template chatmll") as found:
        chosen_template(there, "chatmll", HERE)
    assert "alpaca, chatml, plain" in str(found.value.hint)
    (tmp_path / "bytes.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        chosen_template(there, str(tmp_path / "bytes.jinja"), HERE)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        chosen_template(there, "chatml", HERE)


@pytest.mark.parametrize(("name", "end"), [("chatml", "<|im_end|>"), ("alpaca", "</s>"), ("plain", "</s>")])
def test_a_named_template_marks_its_answers_with_their_ends(tmp_path: Path, name: str, end: str) -> None:
    there = folder(tmp_path, tokenizer_config__json={"eos_token": "</s>"})
    renderer = Renderer(chosen_template(there, name, HERE))
    (example,) = examples(TALK, renderer)
    assert [example.text[place.start : place.end] for place in example.trained] == [f"Yes{end}", f"So{end}"]
    for turn in (1, 3):
        prompt = renderer.prompt(Conversation(TALK.messages[:turn])).text
        assert example.text.startswith(prompt), "a prompt is the beginning of what is trained"
        assert len(prompt) == example.trained[turn // 2].start
    calling = Conversation((Message("user", "x"), Message("assistant", "", tool_calls=(ToolCall("f", {}),))))
    with pytest.raises(ContentDropped, match="leaves out the tool calls"):
        list(examples(calling, renderer))


def test_a_turn_that_nothing_ends_is_refused(tmp_path: Path) -> None:
    there = folder(tmp_path, tokenizer_config__json={})
    with pytest.raises(DataError, match=r"ends a turn with the end of text, and .* names none"):
        chosen_template(there, "alpaca", HERE)
    assert set(NAMED) == {"alpaca", "chatml", "plain"}

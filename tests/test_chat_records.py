"""Records of every kind become conversations, and what is none says why."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raylm.chat.conversation import Conversation, Message, ToolCall, template_messages
from raylm.chat.records import Rule, detect, told
from raylm.chat.turns import BadRecord
from raylm.errors import DataError

ASKED = {"role": "user", "content": "How warm is it?"}
SCHEMA = {"name": "weather", "parameters": {"type": "object"}}


def read(record: dict[str, Any]) -> Conversation:
    return detect(record).read(record)


def test_alpaca_puts_the_input_below_the_instruction() -> None:
    record = {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
    assert read(record).messages == (Message("user", "Translate.\n\nGuten Tag"), Message("assistant", "Good day"))
    assert read({**record, "input": ""}).messages[0].content == "Translate."
    more = read({**record, "system": "Be short.", "history": [["Hello", "Hi"]]})
    assert [message.role for message in more.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_prompts_and_completions_are_texts_or_messages() -> None:
    due = (Message("user", "2 + 2?"), Message("assistant", "4"))
    assert read({"prompt": "2 + 2?", "completion": "4"}).messages == due
    as_messages = {
        "prompt": [{"role": "user", "content": "2 + 2?"}],
        "completion": [{"role": "assistant", "content": "4"}],
    }
    assert read(as_messages).messages == due


def test_columns_of_other_names_are_read_where_the_job_names_them() -> None:
    record = {"question": "2 + 2?", "answer": "4"}
    with pytest.raises(DataError, match="no kind that raylm knows: the columns question, answer") as found:
        detect(record)
    assert "{kind: prompt_completion, columns: {prompt: question, completion: answer}}" in str(found.value.hint)
    rule = Rule("prompt_completion", (("prompt", "question"), ("completion", "answer")))
    assert rule.read(record).messages == (Message("user", "2 + 2?"), Message("assistant", "4"))
    assert told(rule, record).endswith("(prompt from 'question', completion from 'answer')")
    with pytest.raises(BadRecord, match="has no 'answer', which the job names as completion"):
        rule.read({"question": "2 + 2?"})


def test_sharegpt_with_calls_and_bare_tools() -> None:
    record = {
        "conversations": [
            {"from": "human", "value": "How warm is it?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"place": "Ulm"}}'},
            {"from": "observation", "value": '{"celsius": 7}'},
            {"from": "gpt", "value": "7 °C."},
        ],
        "tools": json.dumps([SCHEMA]),
    }
    made = read(record)
    assert [message.role for message in made.messages] == ["user", "assistant", "tool", "assistant"]
    assert made.messages[1].tool_calls == (ToolCall("weather", {"place": "Ulm"}),)
    assert made.tools == ({"type": "function", "function": SCHEMA},)
    assert template_messages(made.messages)[1]["tool_calls"] == [
        {"type": "function", "function": {"name": "weather", "arguments": {"place": "Ulm"}}}
    ]


@pytest.mark.parametrize("arguments", ['{"place": "Ulm"}', {"place": "Ulm"}])
def test_messages_with_calls_reasoning_and_weights(arguments: Any) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    record = {
        "messages": [
            {"role": "developer", "content": "Be exact."},
            ASKED,
            {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
            {"role": "tool", "tool_call_id": "c1", "content": "7"},
            {"role": "assistant", "reasoning": "It said 7.", "content": "7 °C."},
        ],
        "tools": [{"type": "function", "function": SCHEMA}],
    }
    made = read(record)
    assert [message.role for message in made.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert made.messages[2] == Message(
        "assistant", "", tool_calls=(ToolCall("weather", {"place": "Ulm"}, "c1"),), weight=0
    )
    assert made.messages[3].tool_call_id == "c1"
    assert made.messages[4].reasoning == "It said 7."


def test_parts_are_texts_reasoning_and_calls_and_never_a_list_in_words() -> None:
    parts = [
        {"type": "reasoning", "value": "I should look."},
        {"type": "text", "text": "One moment."},
        {"type": "tool_call", "value": '{"name": "weather", "arguments": "{}"}'},
    ]
    answer = read({"messages": [ASKED, {"role": "assistant", "content": parts}]}).messages[1]
    assert answer == Message("assistant", "One moment.", "I should look.", (ToolCall("weather", {}),))
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(BadRecord, match='a part of type "image_url" at message 1'):
        read({"messages": [{"role": "user", "content": image}, {"role": "assistant", "content": "A cat."}]})


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([ASKED], "has no assistant's turn: user"),
        ([], "has no message in messages"),
        ("hello", "which is no list of messages"),
        ([{"role": "assistant", "content": "Hi"}, ASKED], "assistant at message 1, before any user"),
        ([ASKED, ASKED, {"role": "assistant", "content": "Hi"}], "user at messages 1 and 2"),
        ([ASKED, {"role": "system", "content": "x"}, {"role": "assistant", "content": "Hi"}], "system at message 2"),
        ([ASKED, {"role": "tool", "content": "x"}, {"role": "assistant", "content": "Hi"}], "where no tool was called"),
        ([ASKED, {"role": "narrator", "content": "x"}], 'has role "narrator" at message 2'),
        ([ASKED, {"role": "assistant", "content": 5}], "has content at message 2 5, which is no text"),
        ([ASKED, {"role": "assistant", "content": " "}], "has nothing in its assistant's turns"),
        ([ASKED, {"role": "assistant", "content": "x", "weight": -1}], "has weight -1 at message 2"),
        ([ASKED, {"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}], "a tool call without a name"),
        (
            [ASKED, {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{"}}],
            "arguments of f in message 2 .*, which is no JSON",
        ),
    ],
)
def test_what_is_no_conversation_says_why(messages: Any, words: str) -> None:
    with pytest.raises(BadRecord, match=words):
        Rule("messages").read({"messages": messages})


def test_preferences_and_tasks_with_several_instances_are_not_read_as_examples() -> None:
    with pytest.raises(DataError, match="pairs of preferences"):
        detect({"prompt": "x", "chosen": "y", "rejected": "z"})
    with pytest.raises(DataError, match="a label of true or false"):
        detect({"messages": [ASKED], "label": False})
    with pytest.raises(DataError, match="lists within `instances`"):
        detect({"instruction": "Add.", "instances": [{"input": "1 1", "output": "2"}]})


SETS = Path(os.environ.get("RAYLM_TEST_DATA", "")) / "instruction"


@pytest.mark.skipif(not SETS.is_dir(), reason="no folder of instruction data: set RAYLM_TEST_DATA")
def test_sets_of_other_people_are_read_row_for_row() -> None:
    def rows(name: str) -> list[dict[str, Any]]:
        with gzip.open(SETS / f"{name}.jsonl.gz", "rt") as lines:
            return [json.loads(line) for line in lines]

    counts = {}
    for name in ("alpaca_gpt4_en", "alpaca_gpt4_zh", "glaive_toolcall_en_demo", "openai_messages_tools"):
        records = rows(name)
        rule = detect(records[0])
        read = [rule.read(record) for record in records]
        turns = [message for conversation in read for message in conversation.messages]
        counts[name] = Counter(
            rows=len(read),
            calling=sum(any(message.tool_calls for message in conversation.messages) for conversation in read),
            calls=sum(len(message.tool_calls) for message in turns),
            thoughts=sum(bool(message.reasoning) for message in turns),
            answered=sum(conversation.messages[-1].role == "assistant" for conversation in read),
        )
        assert not any("'type'" in message.content for message in turns)
    assert counts == {
        "alpaca_gpt4_en": Counter(rows=796, answered=796, calling=0, calls=0, thoughts=0),
        "alpaca_gpt4_zh": Counter(rows=400, answered=400, calling=0, calls=0, thoughts=0),
        "glaive_toolcall_en_demo": Counter(rows=240, answered=240, calling=120, calls=162, thoughts=0),
        "openai_messages_tools": Counter(rows=40, answered=40, calling=28, calls=61, thoughts=98),
    }
    with pytest.raises(DataError, match="columns question, answer"):
        detect(rows("gsm8k_train_3000")[0])
    with pytest.raises(DataError, match="`instances`"):
        detect(rows("seed_tasks")[0])

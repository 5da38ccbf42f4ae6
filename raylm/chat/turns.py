"""Turns as ShareGPT writes them, and what any conversation has to be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from raylm.chat.conversation import Message, Role, ToolCall

_SPEAKERS: dict[str, Role] = {
    **{"system": "system"},
    **{"human": "user", "user": "user"},
    **{"gpt": "assistant", "assistant": "assistant", "model": "assistant", "chatgpt": "assistant"},
    **{"bing": "assistant", "bard": "assistant", "function_call": "assistant", "tool_call": "assistant"},
    **{"observation": "tool", "tool": "tool", "tool_response": "tool", "function_response": "tool"},
}
_CALLS = ("function_call", "tool_call")


class BadRecord(Exception):
    """A record that is no conversation; what it says follows on the record's place."""


def text(value: Any, name: str) -> str:
    """A text, empty for None; BadRecord for anything else."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRecord(f"has {name} {short(value)}, which is no text")
    return value


def short(value: Any) -> str:
    """A value for people, cut."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else shown[:57] + "…"


def items_of(value: Any, name: str) -> Sequence[Mapping[str, Any]]:
    """A list of objects that is not empty."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, Mapping) for item in value):
        raise BadRecord(f"has {name} {short(value)}, which is no list of messages")
    if not value:
        raise BadRecord(f"has no message in {name}")
    return value


def parsed(value: str, name: str) -> Any:
    """What a text of JSON says."""
    try:
        return json.loads(value)
    except ValueError as error:
        raise BadRecord(f"has {name} {short(value)}, which is no JSON") from error


def sharegpt_turns(value: Any) -> tuple[Message, ...]:
    """The messages of a list of from and value."""
    return tuple(_turn(item, number) for number, item in enumerate(items_of(value, "conversations"), 1))


def _turn(item: Mapping[str, Any], number: int) -> Message:
    speaker = item.get("from")
    if not isinstance(speaker, str) or speaker.lower() not in _SPEAKERS:
        raise BadRecord(f"has message {number} from {short(speaker)}, which is none of {', '.join(_SPEAKERS)}")
    role, content = _SPEAKERS[speaker.lower()], text(item.get("value"), f"message {number}")
    weight = weight_of(item, number)
    if speaker.lower() in _CALLS:
        called = parsed(content, f"message {number}")
        calls = [call_of(one, number) for one in (called if isinstance(called, list) else [called])]
        return Message(role, "", tool_calls=tuple(calls), weight=weight)
    return Message(role, content, weight=weight)


def call_of(value: Any, number: int, id: str | None = None) -> ToolCall:
    """A call from its name and arguments, which may be a text of JSON."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise BadRecord(f"has a tool call without a name in message {number}: {short(value)}")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = parsed(arguments, f"arguments of {value['name']} in message {number}") if arguments.strip() else {}
    if not isinstance(arguments, Mapping):
        raise BadRecord(f"has arguments {short(arguments)} of {value['name']} in message {number}, which are no object")
    return ToolCall(value["name"], dict(arguments), id)


def weight_of(item: Mapping[str, Any], number: int) -> float | None:
    """A message's own weight, from `weight` or `train`."""
    weight = item.get("weight", item.get("train"))
    if weight is None:
        return None
    if not isinstance(weight, (bool, int, float)) or not 0 <= weight < float("inf"):
        raise BadRecord(f"has weight {short(weight)} at message {number}, which is no number from 0 on")
    return float(weight)


def check_turns(messages: Sequence[Message]) -> None:
    """Raise BadRecord unless the turns can be a conversation with something to learn."""
    before: Message | None = None
    for number, message in enumerate(messages, 1):
        if message.role == "system" and number > 1:
            raise BadRecord(f"has its roles out of order: system at message {number}, which may be the first only")
        first = before is None or before.role == "system"
        if first and message.role not in ("system", "user"):
            raise BadRecord(f"has its roles out of order: {message.role} at message {number}, before any user")
        if message.role == "user" and before is not None and before.role == "user":
            raise BadRecord(f"has its roles out of order: user at messages {number - 1} and {number}")
        if message.role == "tool" and not (before and (before.tool_calls or before.role == "tool")):
            raise BadRecord(f"has its roles out of order: tool at message {number}, where no tool was called")
        before = message
    answers = [message for message in messages if message.role == "assistant"]
    if not answers:
        raise BadRecord("has no assistant's turn: " + ", ".join(message.role for message in messages))
    if not any(answer.content.strip() or answer.tool_calls for answer in answers):
        raise BadRecord("has nothing in its assistant's turns")

"""Messages and tools as OpenAI's API has them, and the forms of them that data sets use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raylm.chat.conversation import Message, Role, ToolCall
from raylm.chat.turns import BadRecord, call_of, items_of, parsed, short, text, weight_of

_ROLES: dict[str, Role] = {
    **{"system": "system", "developer": "system", "user": "user", "human": "user"},
    **{"assistant": "assistant", "model": "assistant", "tool": "tool", "function": "tool", "ipython": "tool"},
}
_REASONING = ("reasoning_content", "thinking", "reasoning")
_TEXT_PARTS = ("text", "input_text", "output_text")
_CALL_PARTS = ("tool_call", "function_call")


def messages_of(value: Any) -> tuple[Message, ...]:
    """The messages of a list of role and content."""
    return tuple(_message(item, number) for number, item in enumerate(items_of(value, "messages"), 1))


def tools_of(value: Any) -> tuple[dict[str, Any], ...]:
    """Tools as functions' schemas; from a list or a text of JSON, with or without the wrapper of type and function."""
    if isinstance(value, str):
        value = parsed(value, "tools") if value.strip() else None
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise BadRecord(f"has tools {short(value)}, which are no list")
    return tuple(_tool(parsed(tool, "tools") if isinstance(tool, str) else tool) for tool in value)


def _tool(tool: Any) -> dict[str, Any]:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise BadRecord(f"has a tool without a name: {short(tool)}")
    return {"type": "function", "function": dict(inner)}


def _message(item: Mapping[str, Any], number: int) -> Message:
    role = item.get("role")
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise BadRecord(f"has role {short(role)} at message {number}, which is none of {', '.join(_ROLES)}")
    content, reasoning, calls = _content(item.get("content"), number)
    spoken = next((item[key] for key in _REASONING if item.get(key)), None)
    reasoning = text(spoken, f"reasoning at message {number}") or reasoning
    for call in item.get("tool_calls") or ():
        own = call if isinstance(call, Mapping) else {}
        calls.append(call_of(own.get("function", call), number, _id(own)))
    if item.get("function_call"):
        calls.append(call_of(item["function_call"], number))
    if calls and _ROLES[role.lower()] != "assistant":
        raise BadRecord(f"has a tool call of the {role} at message {number}")
    return Message(
        _ROLES[role.lower()],
        content,
        reasoning=reasoning,
        tool_calls=tuple(calls),
        tool_call_id=_id(item, "tool_call_id"),
        name=item["name"] if isinstance(item.get("name"), str) else None,
        weight=weight_of(item, number),
    )


def _id(item: Mapping[str, Any], key: str = "id") -> str | None:
    return item[key] if isinstance(item.get(key), str) else None


def _content(value: Any, number: int) -> tuple[str, str, list[ToolCall]]:
    """Text, reasoning and calls of a message's content: a text, or a list of parts."""
    if not isinstance(value, (list, tuple)):
        return text(value, f"content at message {number}"), "", []
    texts: list[str] = []
    reasonings: list[str] = []
    calls: list[ToolCall] = []
    for part in value:
        if not isinstance(part, Mapping):
            raise BadRecord(f"has a part {short(part)} at message {number}, which is no object")
        kind = part.get("type")
        inner = next((part[key] for key in ("value", "text", *_REASONING, kind) if part.get(key) is not None), None)
        if kind in _TEXT_PARTS:
            texts.append(text(inner, f"a part at message {number}"))
        elif kind in _REASONING:
            reasonings.append(text(inner, f"a part at message {number}"))
        elif kind in _CALL_PARTS:
            calls.append(call_of(parsed(inner, "a tool call") if isinstance(inner, str) else inner or part, number))
        else:
            raise BadRecord(
                f"has a part of type {short(kind)} at message {number}; texts, reasoning and calls are read"
            )
    return "\n".join(texts), "\n".join(reasonings), calls

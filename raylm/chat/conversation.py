"""A conversation, whatever record it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """What an assistant asks a tool for. id: what its result refers to, where the record has one."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn. name: of the tool whose result it is. weight: of its tokens in the loss, None for the job's rule."""

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    weight: float | None = None


@dataclass(frozen=True)
class Conversation:
    """Turns in order, and the tools that the assistant may call, as JSON schemas of functions."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()


def template_messages(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """The messages as chat templates take them: OpenAI's keys, arguments of calls as objects.

    Reasoning stands under the names that templates read: `reasoning_content`, and `thinking` for those of gpt-oss.
    """
    return [_template_message(message) for message in messages]


def _template_message(message: Message) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        made |= {"thinking": message.reasoning, "reasoning_content": message.reasoning}
    if message.tool_calls:
        made["tool_calls"] = [_template_call(call) for call in message.tool_calls]
    optional = {"tool_call_id": message.tool_call_id, "name": message.name}
    return made | {key: value for key, value in optional.items() if value is not None}


def _template_call(call: ToolCall) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    return made if call.id is None else {"id": call.id, **made}

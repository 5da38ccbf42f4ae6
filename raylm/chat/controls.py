"""Text of people cannot spell a control token: it is marked before a template sees it, and found again behind.

A template writes the control tokens of its turns itself. Where a message's content holds the spelling of one, the text
would otherwise end a turn, or begin one of another role.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import lru_cache
from typing import Any

from raylm.chat.conversation import Conversation, Message, ToolCall
from raylm.chat.marks import unused_marks


def mark(conversation: Conversation, controls: Collection[str]) -> tuple[Conversation, tuple[str, str] | None]:
    """The conversation with each control token's spelling marked in whatever people or tools wrote, and the marks.

    None for the marks where nobody spells one.
    """
    pattern, texts = _pattern(tuple(sorted(controls))), _texts(conversation)
    if pattern is None or not any(pattern.search(text) for text in texts):
        return conversation, None
    opens, closes = marks = unused_marks("".join(texts))

    def marked(text: str) -> str:
        return pattern.sub(lambda found: f"{opens}{found[0]}{closes}", text)

    messages = tuple(_message(message, marked) for message in conversation.messages)
    return Conversation(messages, tuple(_everywhere(tool, marked) for tool in conversation.tools)), marks


@lru_cache(maxsize=8)
def _pattern(controls: tuple[str, ...]) -> re.Pattern[str] | None:
    longest_first = sorted((control for control in controls if control), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _texts(conversation: Conversation) -> list[str]:
    texts: list[str] = []
    for message in conversation.messages:
        texts += [message.content, message.reasoning, message.name or ""]
        for call in message.tool_calls:
            texts += [call.name, *_leaves(call.arguments)]
    return texts + [text for tool in conversation.tools for text in _leaves(tool)]


def _leaves(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (str(key), *_leaves(item))]
    return [text for item in value for text in _leaves(item)] if isinstance(value, list) else []


def _message(message: Message, marked: Callable[[str], str]) -> Message:
    calls = tuple(
        ToolCall(marked(call.name), _everywhere(call.arguments, marked), call.id) for call in message.tool_calls
    )
    name = None if message.name is None else marked(message.name)
    return replace(
        message, content=marked(message.content), reasoning=marked(message.reasoning), tool_calls=calls, name=name
    )


def _everywhere(value: Any, marked: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return marked(value)
    if isinstance(value, dict):
        return {marked(key) if isinstance(key, str) else key: _everywhere(item, marked) for key, item in value.items()}
    return [_everywhere(item, marked) for item in value] if isinstance(value, list) else value

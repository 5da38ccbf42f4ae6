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

# Around a spelling in a content. Characters of a private plane, which a content loses where it holds them itself.
OPENS, CLOSES = "\U000fff00", "\U000fff01"
_MARKS = str.maketrans("", "", OPENS + CLOSES)


def mark(conversation: Conversation, controls: Collection[str]) -> Conversation:
    """The conversation with each control token's spelling marked in whatever people or tools wrote."""
    pattern = _pattern(tuple(sorted(controls)))
    if pattern is None or not any(pattern.search(text) for text in _texts(conversation)):
        return conversation

    def marked(text: str) -> str:
        return pattern.sub(lambda found: f"{OPENS}{found[0]}{CLOSES}", text.translate(_MARKS))

    return Conversation(
        tuple(_message(message, marked) for message in conversation.messages),
        tuple(_everywhere(tool, marked) for tool in conversation.tools),
    )


def unmark(text: str) -> tuple[str, list[tuple[int, int]], Callable[[int], int]]:
    """The text without marks, where the marked spellings stand in it, and what a place in the marked text is in it."""
    places: list[tuple[int, int]] = []
    removed: list[int] = []
    opened = 0
    for found in re.finditer(f"[{OPENS}{CLOSES}]", text):
        place = found.start() - len(removed)
        removed.append(found.start())
        if found[0] == OPENS:
            opened = place
        else:
            places.append((opened, place))
    plain = text.translate(_MARKS)

    def moved(place: int) -> int:
        return place - sum(1 for at in removed if at < place)

    return plain, places, moved


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

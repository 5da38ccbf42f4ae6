"""What a conversation teaches: a text, and how much each of its characters counts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from raylm.chat.conversation import Conversation
from raylm.chat.render import Renderer

TrainOn: TypeAlias = Literal["all", "assistant", "last", "each"]


@dataclass(frozen=True)
class Trained:
    """Characters of a text that count in the loss, with their weight."""

    start: int
    end: int
    weight: float = 1.0


@dataclass(frozen=True)
class Example:
    """A text to train on and its trained places, in order and apart. tools_shown, plain: as of RenderedChat."""

    text: str
    trained: tuple[Trained, ...]
    tools_shown: bool = True
    plain: tuple[tuple[int, int], ...] = ()


def examples(conversation: Conversation, renderer: Renderer, train_on: TrainOn = "assistant") -> Iterator[Example]:
    """What is trained of a conversation.

    all: every character. assistant: every turn of the assistant. last: its last one. each: one example for each of its
    turns, cut behind it, as the model will be prompted; only that turn is trained. A message's own weight counts
    instead of 1, except with `all`. An example in which nothing counts is not given.
    """
    if train_on == "each":
        for number, message in enumerate(conversation.messages):
            if message.role == "assistant":
                yield from examples(
                    replace(conversation, messages=conversation.messages[: number + 1]), renderer, "last"
                )
        return
    rendered = renderer.render(conversation, last=train_on == "last")
    if train_on == "all":
        yield Example(rendered.text, (Trained(0, len(rendered.text)),), rendered.tools_shown, rendered.plain)
        return
    weights = [1.0 if message.weight is None else message.weight for message in conversation.messages]
    trained = tuple(
        Trained(answer.start, answer.end, weights[answer.message])
        for answer in rendered.answers
        if weights[answer.message] > 0
    )
    if trained:
        yield Example(rendered.text, trained, rendered.tools_shown, rendered.plain)


def token_weights(offsets: Sequence[tuple[int, int]], trained: Sequence[Trained]) -> list[float]:
    """The weight of each token, from its (start, end) in characters: of the place that it has a character of, or 0.

    A token that reaches into a place from before it counts, as it holds what the model has to say first.
    """
    starts = [place.start for place in trained]
    weights = []
    for start, end in offsets:
        # The last place that begins before the token ends is the only one that it can lie in.
        place = trained[at - 1] if (at := bisect_right(starts, max(start, end - 1))) else None
        weights.append(place.weight if place is not None and start < place.end and end > start else 0.0)
    return weights

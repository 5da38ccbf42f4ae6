"""A conversation as a template renders it: the text, where each answer stands in it, and nothing lost on the way.

Answers are found by the template's own marks of what is generated. Without marks, an answer is what stands between the
conversation before it, rendered up to the point where the model speaks, and the conversation up to and with it; both
have to be beginnings of the whole text. Where they are not, nobody can say which characters the model would have said,
and the conversation is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raylm.chat.controls import mark
from raylm.chat.conversation import Conversation, Message, ToolCall, template_messages
from raylm.chat.marks import unmarked
from raylm.chat.template import ChatTemplate, Rendered, TemplateFailed
from raylm.errors import DataError


class AnswersNotFound(DataError):
    """A template does not show which part of its text is the model's."""


class ContentDropped(DataError):
    """A template leaves out a part of a conversation."""


@dataclass(frozen=True)
class Answer:
    """Where an assistant's turn stands in the text, in characters: what the model has to say, with the turn's end."""

    message: int
    start: int
    end: int


@dataclass(frozen=True)
class RenderedChat:
    """The text of a conversation and its answers, in order; an answer may have several places, or none.

    tools_shown: False where the conversation has tools, calls none of them, and the template does not list them.
    plain: where the text holds the spelling of a control token that somebody wrote, which is none.
    """

    text: str
    answers: tuple[Answer, ...]
    tools_shown: bool = True
    plain: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class _Tried:
    """What a template does with conversations of a form: the contents that it leaves out, in words."""

    dropped: tuple[str, ...]
    tools_shown: bool


class Renderer:
    """Renders conversations by one template, and refuses those that it would change.

    controls: the spellings of the tokenizer's control tokens, which nothing that people or tools wrote stands for.
    """

    def __init__(self, template: ChatTemplate, controls: Collection[str] = ()) -> None:
        self.template, self._controls = template, frozenset(controls)
        self._tried: dict[Any, _Tried] = {}

    def render(self, conversation: Conversation, *, last: bool = False) -> RenderedChat:
        """The text and the answers; only the last turn's with `last`.

        TemplateFailed, AnswersNotFound or ContentDropped where that cannot be had.
        """
        tried = self._try(conversation)
        if tried.dropped:
            raise ContentDropped(
                f"the chat template of {self.template.origin} leaves out {' and '.join(tried.dropped)}",
                hint="choose a template that shows it, chat.template: FILE, or take it out of the data",
            )
        conversation, marks = mark(conversation, self._controls)
        spoken = [n for n, message in enumerate(conversation.messages) if message.role == "assistant"]
        whole = self._render(conversation, len(conversation.messages))
        if self.template.marks:
            answers = self._by_marks(conversation, whole, spoken)
            answers = [answer for answer in answers if not last or answer.message == spoken[-1]]
        else:
            answers = [self._by_prefixes(conversation, whole.text, n) for n in (spoken[-1:] if last else spoken)]
        if marks is None:
            return RenderedChat(whole.text, tuple(answers), tried.tools_shown)
        text, plain, moved = unmarked(whole.text, marks)
        answers = [Answer(answer.message, moved(answer.start), moved(answer.end)) for answer in answers]
        return RenderedChat(text, tuple(answers), tried.tools_shown, plain)

    def prompt(self, conversation: Conversation) -> RenderedChat:
        """The text up to the point where the model speaks next, without answers."""
        conversation, marks = mark(conversation, self._controls)
        text = self._render(conversation, len(conversation.messages), generation_prompt=True).text
        if marks is None:
            return RenderedChat(text, ())
        text, plain, _ = unmarked(text, marks)
        return RenderedChat(text, (), plain=plain)

    def _try(self, conversation: Conversation) -> _Tried:
        """What becomes of conversations of this form: tried once for each, with contents that stand nowhere else."""
        form = _form(conversation)
        if form not in self._tried:
            marked = _marked(conversation)
            text = self._render(marked, len(marked.messages)).text
            dropped = _dropped(marked, text)
            self._tried[form] = _Tried(dropped, all(tool["function"]["name"] in text for tool in marked.tools))
        return self._tried[form]

    def _render(self, conversation: Conversation, messages: int, *, generation_prompt: bool = False) -> Rendered:
        return self.template.render(
            template_messages(conversation.messages[:messages]), conversation.tools, generation_prompt=generation_prompt
        )

    def _by_marks(self, conversation: Conversation, whole: Rendered, spoken: Sequence[int]) -> list[Answer]:
        places = whole.generated
        owners = list(spoken)
        if len(places) != len(spoken):
            # How many places the conversation has up to and with each answer says whose they are.
            counts = [len(self._render(conversation, number + 1).generated) for number in spoken]
            if sorted(counts) != counts or counts[-1] != len(places):
                raise AnswersNotFound(
                    f"the chat template of {self.template.origin} marks {len(places)} places as generated, for "
                    f"{len(spoken)} turns of the assistant",
                    hint="mark each turn: {% generation %} … {% endgeneration %} around what the assistant says",
                )
            starts = [0, *counts[:-1]]
            owners = [n for n, a, b in zip(spoken, starts, counts, strict=True) for _ in range(b - a)]
        return [Answer(owner, *place) for owner, place in zip(owners, places, strict=True) if place[0] < place[1]]

    def _by_prefixes(self, conversation: Conversation, text: str, number: int) -> Answer:
        try:
            before = self._render(conversation, number, generation_prompt=True).text
            upto = self._render(conversation, number + 1).text.rstrip()
        except TemplateFailed as error:
            raise self._not_found(f"it cannot render a part of a conversation: {error}") from error
        if not text.startswith(before):
            raise self._not_found("what it puts before an answer is not what stands there in the whole text")
        if not text.startswith(upto) or len(upto) < len(before):
            raise self._not_found("it renders an answer otherwise when more follows", "train_on: last or each, or ")
        return Answer(number, len(before), len(upto))

    def _not_found(self, why: str, otherwise: str = "") -> AnswersNotFound:
        return AnswersNotFound(
            f"the chat template of {self.template.origin} does not show which text is the assistant's: {why}",
            hint=f"{otherwise or ''}chat.template: FILE, a template with {{% generation %}} … {{% endgeneration %}} "
            "around what the assistant says",
        )


def _form(conversation: Conversation) -> Any:
    """What a template can tell conversations apart by, but for their words."""
    messages = tuple(
        (m.role, bool(m.content.strip()), bool(m.reasoning), tuple(bool(call.arguments) for call in m.tool_calls))
        for m in conversation.messages
    )
    return messages, bool(conversation.tools)


def _marked(conversation: Conversation) -> Conversation:
    """The conversation with contents that stand nowhere else."""
    return Conversation(
        tuple(_marked_message(message, number) for number, message in enumerate(conversation.messages)),
        tuple(
            {"type": "function", "function": {**tool["function"], "name": f"tool{number}x"}}
            for number, tool in enumerate(conversation.tools)
        ),
    )


def _marked_message(message: Message, number: int) -> Message:
    calls = tuple(
        ToolCall(f"call{number}x{n}", {f"key{number}x{n}": f"argument{number}x{n}"} if call.arguments else {}, call.id)
        for n, call in enumerate(message.tool_calls)
    )
    return replace(
        message,
        content=f"content{number}x" if message.content.strip() else message.content,
        reasoning=f"reasoning{number}x" if message.reasoning else "",
        tool_calls=calls,
    )


def _dropped(marked: Conversation, text: str) -> tuple[str, ...]:
    """What of a marked conversation the text does not hold, in words.

    Reasoning of turns before the last answer may go: templates leave it out on purpose.
    """
    last = max((n for n, message in enumerate(marked.messages) if message.role == "assistant"), default=-1)
    dropped = [
        f"the {what} of the {message.role}"
        for number, message in enumerate(marked.messages)
        for what, marks in _parts(message)
        if not (what == "reasoning" and number < last) and not all(mark in text for mark in marks)
    ]
    return tuple(dict.fromkeys(dropped))


def _parts(message: Message) -> Sequence[tuple[str, tuple[str, ...]]]:
    """What a marked message says: what it is, and the words that have to come out."""
    parts: list[tuple[str, tuple[str, ...]]] = []
    if message.content.strip():
        parts.append(("content", (message.content,)))
    if message.reasoning:
        parts.append(("reasoning", (message.reasoning,)))
    for call in message.tool_calls:
        words = [word for key, value in call.arguments.items() for word in (key, str(value))]
        parts.append(("tool calls", (call.name, *words)))
    return parts

"""Chat templates: Jinja in a sandbox that ends, with the places of what `{% generation %}` encloses.

A template comes with a model from anywhere, so it is code of others: it reads no file and no attribute of Python's, its
loops and texts are bounded, and what it sees is plain JSON. Rendered without faults, the text is transformers' own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from functools import cached_property
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from raylm.chat.marks import unmarked, unused_marks
from raylm.errors import DataError

MAX_TURNS_OF_LOOPS = 200_000  # in one rendering
MAX_CHARACTERS = 64 * 2**20
_MAX_POWER = 64
_TURN = "raylm_turn_of_a_loop"


class TemplateFailed(DataError):
    """A template cannot render a conversation."""


@dataclass(frozen=True)
class Rendered:
    """A text, and where in it the template says that the model has spoken, as (start, end) in characters."""

    text: str
    generated: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template. origin: where it comes from, for people. tokens: by the names it may use, as `bos_token`.

    today: the date that it sees, as its text may name one; a fixed one, so that data prepared again is the same.
    """

    source: str
    origin: str
    tokens: Mapping[str, str] = field(default_factory=dict)
    today: date = date(2026, 1, 1)

    @cached_property
    def fingerprint(self) -> str:
        """Of everything that a text depends on beside the conversation."""
        parts = [self.source, dict(sorted(self.tokens.items())), self.today.isoformat() if self.dated else ""]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def dated(self) -> bool:
        """Whether its text may name a date."""
        return "strftime_now" in self.source

    @cached_property
    def marks(self) -> bool:
        """Whether it marks what the model generates."""
        calls = (block.call.node for block in self._parsed.find_all(jinja2.nodes.CallBlock))
        return any(isinstance(node, jinja2.nodes.ExtensionAttribute) for node in calls)

    @cached_property
    def _environment(self) -> _Sandbox:
        return _Sandbox(self.today)

    @cached_property
    def _parsed(self) -> jinja2.nodes.Template:
        try:
            parsed = self._environment.parse(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateFailed(
                f"the chat template of {self.origin} is no Jinja template: line {error.lineno}: {error.message}",
                hint="give another one: chat.template: FILE",
            ) from error
        loops: list[Any] = [*parsed.find_all(jinja2.nodes.For), *parsed.find_all(jinja2.nodes.Macro)]
        for loop in loops:
            name = jinja2.nodes.Name(_TURN, "load")
            loop.body.insert(0, jinja2.nodes.ExprStmt(jinja2.nodes.Call(name, [], [], None, None)))
        return parsed

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return self._environment.from_string(self._parsed)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        generation_prompt: bool = False,
    ) -> Rendered:
        """The text of a conversation. generation_prompt: with what precedes an answer, at the end.

        TemplateFailed where the template raises an error, or does not end.
        """
        seen = json.dumps([messages, tools], ensure_ascii=False)
        marks = unused_marks(seen + self.source)
        messages, tools = json.loads(seen)  # plain JSON, and nobody's own objects
        compiled = self._compiled
        self._environment.begin(marks)
        try:
            text = compiled.render(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=generation_prompt,
                **self.tokens,
            )
        except _TooMuch as error:
            raise TemplateFailed(f"the chat template of {self.origin} does not end: {error}") from error
        except RecursionError as error:
            raise TemplateFailed(f"the chat template of {self.origin} does not end: it calls itself") from error
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise TemplateFailed(f"the chat template of {self.origin} fails: {_said(error)}") from error
        return Rendered(*unmarked(text, marks)[:2])


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"


class _TooMuch(Exception):
    """A template takes more turns, or makes a longer text, than any conversation needs."""


class _GenerationMarks(jinja2.ext.Extension):
    tags = {"generation"}  # noqa: RUF012  # as Jinja has it

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marked = jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body)
        return marked.set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        environment: Any = self.environment
        opens, closes = environment.marks
        return f"{opens}{caller()}{closes}"


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up, and bounded."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, today: date) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationMarks, "jinja2.ext.loopcontrols"])
        self.marks = ("", "")
        self._turns = 0
        self.filters["tojson"] = _to_json
        self.globals.pop("lipsum", None)
        now = datetime.combine(today, time(12))
        self.globals |= {"raise_exception": _raise, "strftime_now": now.strftime, _TURN: self._turn}

    def begin(self, marks: tuple[str, str]) -> None:
        """A rendering begins, with these around what is generated: no turn is taken."""
        self.marks, self._turns = marks, 0

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse products that would fill the memory."""
        if operator == "**" and abs(right) > _MAX_POWER:
            raise _TooMuch(f"a power of {right}")
        sizes = [len(side) if isinstance(side, (str, list, tuple)) else side for side in (left, right)]
        if operator == "*" and sizes != [left, right] and sizes[0] * sizes[1] > MAX_CHARACTERS:
            raise _TooMuch(f"a text of {sizes[0] * sizes[1]:,} characters")
        return super().call_binop(context, operator, left, right)

    def _turn(self) -> str:
        self._turns += 1
        if self._turns > MAX_TURNS_OF_LOOPS:
            raise _TooMuch(f"its loops take more than {MAX_TURNS_OF_LOOPS:,} turns")
        return ""


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)

"""Templates render as transformers renders them, end, and show where the answers stand."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import random
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from raylm.chat.conversation import Conversation, Message, ToolCall, template_messages
from raylm.chat.examples import Trained, TrainOn, examples, token_weights
from raylm.chat.records import Rule, detect
from raylm.chat.render import AnswersNotFound, ContentDropped, Renderer
from raylm.chat.template import ChatTemplate, TemplateFailed
from raylm.errors import DataError
from tests.chat_templates import CHATML, CLOSING, MARKED, OPENING, PLAIN, STRICT, THINKING, TOKENS, template

TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {}}},)
TALK = Conversation(
    (Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "Bye"), Message("assistant", "So long."))
)
CALL = Conversation(
    (
        Message("user", "How warm?"),
        Message("assistant", "", tool_calls=(ToolCall("weather", {"place": "Ulm"}),)),
        Message("tool", "7"),
        Message("assistant", "7 °C."),
    ),
    TOOLS,
)


def trained(conversation: Conversation, source: str, train_on: TrainOn = "assistant") -> list[list[str]]:
    """The texts that are trained of each example."""
    made = examples(conversation, Renderer(template(source)), train_on)
    return [[example.text[place.start : place.end] for place in example.trained] for example in made]


@pytest.mark.parametrize("source", [CHATML, MARKED])
def test_answers_are_what_the_model_says_with_the_end_of_its_turn(source: str) -> None:
    assert trained(TALK, source) == [["Hello!<|im_end|>", "So long.<|im_end|>"]]
    assert trained(TALK, source, "last") == [["So long.<|im_end|>"]]
    assert trained(TALK, source, "each") == [["Hello!<|im_end|>"], ["So long.<|im_end|>"]]
    ((everything,),) = trained(TALK, source, "all")
    assert everything.startswith("<|im_start|>system\nYou help.")
    assert everything.endswith("So long.<|im_end|>\n")


def test_a_message_of_weight_zero_is_not_trained_and_another_weight_stands() -> None:
    first, _, second, _ = TALK.messages
    weighed = Conversation(
        (first, Message("assistant", "Hello!", weight=0), second, Message("assistant", "x", weight=0.5))
    )
    (example,) = examples(weighed, Renderer(template(PLAIN)))
    assert [(example.text[place.start : place.end], place.weight) for place in example.trained] == [("x</s>", 0.5)]
    assert not list(
        examples(Conversation((first, Message("assistant", "Hello!", weight=0))), Renderer(template(PLAIN)))
    )


def test_a_call_is_trained_and_a_template_that_drops_it_is_refused_in_words() -> None:
    ((call, answer),) = trained(CALL, CHATML)
    assert call.startswith('<call>{"name": "weather"')
    assert call.endswith("</call><|im_end|>")
    assert answer == "7 °C.<|im_end|>"
    with pytest.raises(ContentDropped, match=r"a test leaves out the tool calls of the assistant$"):
        trained(CALL, PLAIN)
    without_results = CHATML.replace("{{- message.content }}", "{{- message.content if message.role != 'tool' }}")
    with pytest.raises(ContentDropped, match=r"leaves out the content of the tool$"):
        trained(CALL, without_results)


def test_tools_that_are_not_shown_are_told_where_none_is_called() -> None:
    unused = Conversation(TALK.messages, TOOLS)
    assert [example.tools_shown for example in examples(unused, Renderer(template(PLAIN)))] == [False]
    assert [example.tools_shown for example in examples(unused, Renderer(template(CHATML)))] == [True]


def test_thoughts_of_earlier_turns_may_go_and_the_last_ones_may_not() -> None:
    thinking = [Message("assistant", message.content, "Hm.") for message in TALK.messages[1::2]]
    talk = Conversation((TALK.messages[0], thinking[0], TALK.messages[2], thinking[1]))
    assert trained(talk, THINKING, "each") == [["<think>Hm.</think>Hello!<eot>"], ["<think>Hm.</think>So long.<eot>"]]
    assert trained(talk, THINKING, "last") == [["<think>Hm.</think>So long.<eot>"]]
    with pytest.raises(AnswersNotFound, match="renders an answer otherwise when more follows") as found:
        trained(talk, THINKING)
    assert str(found.value.hint).startswith("train_on: last or each")
    with pytest.raises(ContentDropped, match="the reasoning of the assistant"):
        trained(talk, PLAIN)


def test_where_no_prefix_is_one_the_answer_is_not_guessed() -> None:
    single = Conversation(TALK.messages[:2])
    assert trained(single, CLOSING) == [["Hello!<end>\n</s>"]]
    with pytest.raises(AnswersNotFound, match="otherwise when more follows"):
        trained(TALK, CLOSING)
    with pytest.raises(AnswersNotFound, match="what it puts before an answer is not what stands there"):
        trained(single, OPENING)


def test_marks_belong_to_their_turns_whatever_their_number() -> None:
    twice = MARKED.replace("{% endgeneration %}", "{% endgeneration %}{% generation %}{{ '!' }}{% endgeneration %}")
    assert trained(TALK, twice, "last") == [["So long.<|im_end|>", "!"]]
    assert len(trained(TALK, twice)[0]) == 4


def test_a_template_that_fails_says_with_which_words() -> None:
    with pytest.raises(TemplateFailed, match="the chat template of a test fails: roles must alternate"):
        trained(Conversation((Message("system", "x"), *TALK.messages)), STRICT)
    with pytest.raises(TemplateFailed, match="fails: TypeError"):
        trained(TALK, "{{ messages[0].content + 5 }}")
    with pytest.raises(TemplateFailed, match=r"is no Jinja template: line 2: ") as found:
        trained(TALK, "\n{% for %}")
    assert "chat.template: FILE" in str(found.value.hint)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 'x' * 9999999999 }}",
        "{{ 9 ** 99999999 }}",
    ],
)
def test_a_template_that_does_not_end_is_ended(source: str) -> None:
    with pytest.raises(TemplateFailed, match="does not end"):
        template(source).render([])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception.__globals__ }}",
        "{{ messages.append('x') }}",
    ],
)
def test_a_template_reads_no_file_and_nothing_of_pythons(source: str) -> None:
    try:
        text = template(source).render([{"role": "user", "content": "x"}]).text
    except TemplateFailed:
        return
    assert text == "", "what it may not see is nothing"


def test_a_template_sees_one_date_and_its_fingerprint_is_of_all_that_it_depends_on() -> None:
    dated = "{{ strftime_now('%d %B %Y') }}"
    assert ChatTemplate(dated, "a test").render([]).text == "01 January 2026"
    prints = {
        ChatTemplate(dated, "a test").fingerprint,
        ChatTemplate(dated, "a test", today=date(2027, 2, 3)).fingerprint,
        ChatTemplate(dated, "a test", TOKENS).fingerprint,
        ChatTemplate(PLAIN, "a test").fingerprint,
    }
    assert len(prints) == 4
    same = ChatTemplate(PLAIN, "another place", today=date(2027, 2, 3))
    assert same.fingerprint == ChatTemplate(PLAIN, "a test").fingerprint, "neither its place nor an unused date counts"


def test_a_token_counts_by_the_place_that_it_lies_in() -> None:
    places = (Trained(2, 5), Trained(7, 9, 0.5))
    offsets = [(0, 2), (1, 3), (3, 5), (5, 7), (6, 8), (8, 9), (9, 9), (9, 12)]
    assert token_weights(offsets, places) == [0, 1, 1, 0, 0.5, 0.5, 0, 0]


def reference(source: str, conversation: Conversation, *, marks: bool) -> tuple[str, list[tuple[int, int]]]:
    """What transformers makes of it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    made: Any = render_jinja_template(
        [template_messages(conversation.messages)],
        tools=list(conversation.tools) or None,
        chat_template=source,
        return_assistant_tokens_mask=marks,
        **TOKENS,
    )
    return made[0][0], [tuple(place) for place in made[1][0]] if marks else []


@pytest.mark.parametrize("source", [CHATML, MARKED, PLAIN, THINKING, CLOSING])
@pytest.mark.parametrize("conversation", [TALK, CALL])
def test_the_text_is_transformers_own(source: str, conversation: Conversation) -> None:
    text, places = reference(source, conversation, marks=template(source).marks)
    rendered = template(source).render(template_messages(conversation.messages), conversation.tools)
    assert (rendered.text, list(rendered.generated)) == (text, places)


SETS = Path(os.environ.get("RAYLM_TEST_DATA", "")) / "instruction"
ROWS = 40  # of each set, chosen by chance
# By the model's own template, what of all 240 rows of calls is lost, and what cannot be told apart.
LOST = {
    "llama3": "leaves out the tool calls of the assistant",
    "phi3": "leaves out the tool calls of the assistant and the content of the tool",
    "lfm2": "leaves out the tool calls of the assistant",
    "gemma": "fails: Conversation roles must alternate",
    "gemma3": "fails: Conversation roles must alternate",
    "cohere2": "fails: Conversation roles must alternate",
    "deepseekv3": "fails: TypeError: can only concatenate str",
}
EXACT = (
    "qwen2_5",
    "qwen3",
    "qwen3_instruct_2507",
    "llama3",
    "gemma",
    "gemma3",
    "cohere",
    "cohere2",
    "lfm2",
    "lfm2_v2",
)


def trl_templates() -> Path | None:
    """TRL's copies of models' templates, without importing it."""
    found = importlib.util.find_spec("trl")
    places = [Path(place) / "chat_templates" for place in (found.submodule_search_locations or [])] if found else []
    return next((place for place in places if place.is_dir()), None)


def rows(name: str) -> list[Conversation]:
    with gzip.open(SETS / f"{name}.jsonl.gz", "rt") as lines:
        records = [json.loads(line) for line in lines]
    if name == "dpo_en_demo":
        return [Rule("sharegpt").read({"conversations": [*row["conversations"], row["chosen"]]}) for row in records]
    rule = Rule("messages") if name == "kto_en_demo" else detect(records[0])
    return [rule.read(record) for record in records]


needs_models_templates = pytest.mark.skipif(
    trl_templates() is None or not SETS.is_dir(), reason="needs trl and RAYLM_TEST_DATA"
)


@needs_models_templates
def test_models_templates_render_as_transformers_renders_them() -> None:
    folder = trl_templates()
    assert folder is not None
    chance = random.Random(0)
    chosen = [
        row
        for name in ("alpaca_gpt4_en", "kto_en_demo", "glaive_toolcall_en_demo")
        for row in chance.sample(rows(name), 8)
    ]
    compared = Counter[str]()
    for path in sorted(folder.glob("*.jinja")):
        made = ChatTemplate(path.read_text(), path.name, TOKENS, date.today())
        for row in chosen:
            try:
                due = reference(made.source, row, marks=made.marks)
            except Exception:  # whatever a template raises
                with pytest.raises(TemplateFailed):
                    made.render(template_messages(row.messages), row.tools)
                compared["failed"] += 1
                continue
            rendered = made.render(template_messages(row.messages), row.tools)
            assert (rendered.text, list(rendered.generated)) == due, path.name
            compared["equal"] += 1
    assert compared["equal"] > 1000


@needs_models_templates
@pytest.mark.parametrize("name", sorted(LOST))
def test_what_models_templates_lose_of_calls_is_refused_by_name(name: str) -> None:
    folder = trl_templates()
    assert folder is not None
    renderer = Renderer(ChatTemplate((folder / f"{name}.jinja").read_text(), name, TOKENS))
    refused = Counter[tuple[bool, bool]]()
    for row in rows("glaive_toolcall_en_demo"):
        calls = any(message.tool_calls for message in row.messages)
        try:
            renderer.render(row)
        except AnswersNotFound:
            assert not calls
        except DataError as error:
            refused[calls, LOST[name] in str(error)] += 1
    assert refused == {(True, True): 120}


@needs_models_templates
@pytest.mark.parametrize("name", EXACT)
def test_without_marks_the_answers_are_those_of_the_marked_twin(name: str) -> None:
    folder = trl_templates()
    assert folder is not None
    twin_file = folder / f"{name}_training.jinja"
    own = Renderer(ChatTemplate((folder / f"{name}.jinja").read_text(), name, TOKENS))
    twin = Renderer(ChatTemplate(twin_file.read_text(), twin_file.name, TOKENS))
    assert twin.template.marks
    assert not own.template.marks
    compared = 0
    chance = random.Random(1)
    for rows_of in ("alpaca_gpt4_en", "kto_en_demo", "glaive_toolcall_en_demo", "dpo_en_demo"):
        for row in chance.sample(rows(rows_of), ROWS):
            try:
                due, found = twin.render(row), own.render(row)
            except (TemplateFailed, ContentDropped, AnswersNotFound):
                continue
            if due.text != found.text:
                continue
            # White space around an answer may be marked: the prompt ends with it, or nothing is said any more.
            marked = [due.text[place.start : place.end] for place in due.answers]
            assert [found.text[place.start : place.end] for place in found.answers] == [text.strip() for text in marked]
            assert [place.end for place in found.answers] == [
                place.start + len(text.rstrip()) for place, text in zip(due.answers, marked, strict=True)
            ]
            compared += 1
    assert compared >= 2 * ROWS

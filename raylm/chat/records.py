"""Records of instruction data as conversations: which kind a record is, by a rule that is told, and how it is read.

| kind | columns | detected by |
|---|---|---|
| messages | `messages`, `tools` | `messages`; or `conversations` whose items have a role |
| sharegpt | `conversations`, `system`, `tools` | `conversations` whose items have from and value |
| alpaca | `instruction`, `input`, `output`, `system`, `history` | `instruction` and `output` |
| prompt_completion | `prompt`, `completion`, `system` | `prompt` and `completion` |

A record of preferences (`chosen` and `rejected`, or a `label` beside messages) is none of them: half of what it holds
is there to be avoided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from raylm.chat.conversation import Conversation, Message, Role
from raylm.chat.openai import messages_of, tools_of
from raylm.chat.turns import BadRecord, check_turns, sharegpt_turns, text
from raylm.errors import DataError

Kind: TypeAlias = Literal["messages", "sharegpt", "alpaca", "prompt_completion"]
KINDS: tuple[str, ...] = get_args(Kind)
Record: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """How records are read. columns: the record's own name of a column, by the kind's name."""

    kind: Kind
    columns: tuple[tuple[str, str], ...] = ()

    def read(self, record: Record) -> Conversation:
        """The record's conversation; BadRecord says what is wrong with it."""
        if self.columns:
            record = dict(record)
            for due, own in self.columns:
                if own not in record:
                    raise BadRecord(f"has no {own!r}, which the job names as {due}; it has {_listed(record)}")
                record[due] = record[own]
        conversation = _READERS[self.kind](record)
        check_turns(conversation.messages)
        return conversation


def detect(record: Record, *, place: str = "the data") -> Rule:
    """The rule for records like this one; DataError where none fits, with what to write in the job."""
    kind = _kind_of(record)
    if kind is not None:
        return Rule(kind)
    if reason := _known_otherwise(record):
        raise DataError(f"{place} {reason}", hint=_naming(record))
    raise DataError(f"{place} holds records of no kind that raylm knows: {_listed(record)}", hint=_naming(record))


def told(rule: Rule, record: Record) -> str:
    """Which rule matched, for people."""
    by = {
        "messages": "messages with roles",
        "sharegpt": "conversations of from and value",
        "alpaca": "the columns instruction and output",
        "prompt_completion": "the columns prompt and completion",
    }[rule.kind]
    named = ", ".join(f"{due} from {own!r}" for due, own in rule.columns)
    return f"{rule.kind}, by {by}" + (f" ({named})" if named else f"; the records have {_listed(record)}")


def _kind_of(record: Record) -> Kind | None:
    if {"chosen", "rejected"} & record.keys() or ("label" in record and isinstance(record["label"], bool)):
        return None
    for column in ("messages", "conversations"):
        items = record.get(column)
        if isinstance(items, (list, tuple)) and items and isinstance(items[0], Mapping):
            if "role" in items[0]:
                return "messages"
            if "from" in items[0] and "value" in items[0]:
                return "sharegpt"
    if {"instruction", "output"} <= record.keys():
        return "alpaca"
    return "prompt_completion" if {"prompt", "completion"} <= record.keys() else None


def _known_otherwise(record: Record) -> str | None:
    if {"chosen", "rejected"} & record.keys():
        return "holds pairs of preferences (chosen, rejected): as examples, half of them would teach what to avoid"
    if "label" in record and isinstance(record["label"], bool) and ("messages" in record or "completion" in record):
        return "holds records with a label of true or false: as examples, those of false would teach what to avoid"
    instances = record.get("instances")
    if isinstance(instances, (list, tuple)) and instances and isinstance(instances[0], Mapping):
        inner = ", ".join(map(str, instances[0]))
        return f"holds records whose inputs and outputs are lists within `instances` ({inner}), one task for several"
    return None


def _naming(record: Record) -> str:
    """The lines to write in the job file."""
    texts = [str(key) for key, value in record.items() if isinstance(value, str) and value]
    lists = [str(key) for key, value in record.items() if isinstance(value, (list, tuple))]
    if "instances" in lists:
        return "write one record for each instance, with instruction, input and output"
    if {"chosen", "rejected"} & record.keys() or isinstance(record.get("label"), bool):
        return "leave out what is to be avoided, or name the kind to take all: records: {kind: messages}"
    if len(texts) >= 2:
        return (
            "name the columns in the job: records: {kind: prompt_completion, "
            f"columns: {{prompt: {texts[0]}, completion: {texts[-1]}}}}}"
        )
    if lists:
        return f"name the column in the job: records: {{kind: messages, columns: {{messages: {lists[0]}}}}}"
    return f"name the kind and its columns in the job: records: {{kind: …, columns: …}}; kinds: {', '.join(KINDS)}"


def _listed(record: Record) -> str:
    return "the columns " + ", ".join(map(str, record)) if record else "no columns"


def _messages(record: Record) -> Conversation:
    items = record.get("messages", record.get("conversations"))
    return Conversation(messages_of(items), tools_of(record.get("tools")))


def _sharegpt(record: Record) -> Conversation:
    messages = sharegpt_turns(record.get("conversations"))
    if system := text(record.get("system"), "system"):
        messages = (Message("system", system), *messages)
    return Conversation(messages, tools_of(record.get("tools")))


def _alpaca(record: Record) -> Conversation:
    instruction, context = text(record.get("instruction"), "instruction"), text(record.get("input"), "input")
    if "output" not in record:
        raise BadRecord(f"has no output; it has {_listed(record)}")
    messages: list[Message] = []
    if system := text(record.get("system"), "system"):
        messages.append(Message("system", system))
    for turn in record.get("history") or ():
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            raise BadRecord("has a history that is no list of pairs of a prompt and its answer")
        messages += [Message("user", text(turn[0], "history")), Message("assistant", text(turn[1], "history"))]
    prompt = "\n\n".join(part for part in (instruction, context) if part)
    messages += [Message("user", prompt), Message("assistant", text(record["output"], "output"))]
    return Conversation(tuple(messages))


def _prompt_completion(record: Record) -> Conversation:
    for column in ("prompt", "completion"):
        if record.get(column) is None:
            raise BadRecord(f"has no {column}; it has {_listed(record)}")
    system = text(record.get("system"), "system")
    messages = (Message("system", system),) if system else ()
    prompt, completion = _said("user", record["prompt"]), _said("assistant", record["completion"])
    return Conversation(messages + prompt + completion, tools_of(record.get("tools")))


def _said(role: Role, value: Any) -> tuple[Message, ...]:
    """A prompt or completion: a text, or messages."""
    return messages_of(value) if isinstance(value, (list, tuple)) else (Message(role, text(value, role)),)


_READERS: dict[str, Callable[[Record], Conversation]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
}

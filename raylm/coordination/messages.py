"""What the hub and a body say of places and states, as the lines of JSON that travel between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raylm.config.job import Job
from raylm.coordination.contract import Generation, Member
from raylm.coordination.rounds import Held

Message = dict[str, Any]


@dataclass(frozen=True)
class Birth:
    """What a body is told when it comes into being. address: the hub's."""

    job: Job
    number: int
    address: str
    token: str
    patience_seconds: float

    def __repr__(self) -> str:
        return f"<Birth of body {self.number}>"


def held_line(held: Held) -> list[Any]:
    """What a body holds, as it stands in its message."""
    return [held.generation, held.step, held.size, sorted(held.ranks)]


def held_of(line: list[Any]) -> Held:
    """What `held_line` was made of."""
    generation, step, size, ranks = line
    return Held(generation, step, size, frozenset(ranks))


def place_line(member: Member) -> Message:
    """A member's place, as the hub sends it."""
    resume = None if member.resume is None else held_line(member.resume)
    return {"kind": "place", **vars(member), "nodes": list(member.nodes), "resume": resume}


def member_of(place: Message) -> Member:
    """What `place_line` was made of."""
    given = {key: value for key, value in place.items() if key != "kind"}
    resume = None if given["resume"] is None else held_of(given["resume"])
    generation = Generation(given["generation"])
    return Member(**{**given, "generation": generation, "nodes": tuple(given["nodes"]), "resume": resume})

"""An example as a row's tokens: ids, and the weight of each in the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from raylm.chat.examples import Example, token_weights

Cut: TypeAlias = Literal["whole", "cut", "gone"]
Spell: TypeAlias = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class TokenizedExample:
    """ids and weights, one for each token. A weight of 0 is not trained on."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def trained(self) -> int:
        """How many tokens count in the loss, of those that have one before them to be predicted from."""
        return sum(weight > 0 for weight in self.weights[1:])


def tokenize(example: Example, tokenizer: Any, spell: Spell) -> TokenizedExample:
    """The example's tokens, of one tokenization of its whole text, as a prompt's are.

    tokenizer: of the tokenizers library. spell: the ids of a text in which no control token is found, whatever it
    spells; used for the places that `example.plain` names, between which the text is cut.
    """
    ids: list[int] = []
    weights: list[float] = []
    for start, end, plain in _pieces(example):
        text = example.text[start:end]
        if plain:
            spelled = list(spell(text))
            ids += spelled
            weights += token_weights([(start, end)] * len(spelled), example.trained)
            continue
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ids += encoding.ids
        weights += token_weights([(start + a, start + b) for a, b in encoding.offsets], example.trained)
    return TokenizedExample(tuple(ids), tuple(weights))


def fitted(example: TokenizedExample, length: int) -> tuple[Cut, TokenizedExample]:
    """The example in a row of `length` tokens, and what became of it; gone is what has nothing left to learn."""
    kept = TokenizedExample(example.ids[:length], example.weights[:length])
    if not kept.trained:
        return "gone", kept
    return ("whole" if len(example.ids) <= length else "cut"), kept


def ends(example: Example, tokenized: TokenizedExample) -> set[int]:
    """The ids that end what is trained: those after which the weight falls to 0, or the example ends."""
    following = [*tokenized.weights[1:], 0.0]
    found = {
        number
        for number, weight, after in zip(tokenized.ids, tokenized.weights, following, strict=True)
        if weight > 0 and not after
    }
    return found if example.trained else set()


def _pieces(example: Example) -> list[tuple[int, int, bool]]:
    """The text cut into (start, end, plain)."""
    pieces: list[tuple[int, int, bool]] = []
    at = 0
    for start, end in example.plain:
        pieces += [(at, start, False), (start, end, True)]
        at = end
    return [piece for piece in [*pieces, (at, len(example.text), False)] if piece[0] < piece[1]]

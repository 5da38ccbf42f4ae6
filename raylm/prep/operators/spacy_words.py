"""Words and sentences for datatrove's filters: comes in a language, leaves a tokenizer, or None where there is none.

Most languages go by spaCy's rules, which need no model. datatrove runs them over each document with an empty memory and
looks for sentences even when it wants words: 0.4 MB/s. Here each piece between two spaces is taken apart once and
remembered, which gives the same words and sentences at 10 MB/s and more.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from datatrove.utils.word_tokenizers import (
    SpaCyTokenizer,
    StanzaTokenizer,
    WordTokenizer,
    load_tokenizer_assignments,
    load_word_tokenizer,
)

_RUNS = re.compile(r"\S+|\s+")
# Rules for such pieces share no word with a smiley: "don't", "and/or".
_ORDINARY = re.compile(r"[\w.'’]+|[a-z]{2,}/[a-z]{2,}")
_REMEMBERED_CHARACTERS = (
    2_000_000  # of parts, some 60 bytes each: 150 MB at most, and web text has few new words by then
)


# The library takes zh for a language of any script, and each of its sentences for a word.
_CHINESE = dict.fromkeys(("zh", "zho", "chi"), "cmn")
# spaCy's own kinds that need no more than spaCy; these need a library for each.
_NEED_MORE = ("zh", "ja", "ko", "th", "vi")


def without_words(languages: Iterable[str]) -> list[str]:
    """Those languages that tokenizer_of has nothing for, without making one for each of the others."""
    makers = load_tokenizer_assignments()

    def has_words(language: str) -> bool:
        maker: Any = makers.get(_CHINESE.get(language, language))
        if maker is None:
            return False
        library, code = maker.args
        return (library == "SpaCyTokenizer" and code not in _NEED_MORE) or tokenizer_of(language) is not None

    return sorted(language for language in languages if not has_words(language))


@functools.cache
def tokenizer_of(language: str) -> Any:
    """datatrove's tokenizer of this language, or an equal one; None if it needs what is not installed."""
    try:
        tokenizer = load_word_tokenizer(_CHINESE.get(language, language))
        if isinstance(tokenizer, StanzaTokenizer):
            return None  # it fetches its model from the hub
        if isinstance(tokenizer, SpaCyTokenizer):
            return RememberingTokenizer(tokenizer) if _by_rules(tokenizer) else tokenizer
    except (ImportError, ValueError):
        return None
    return tokenizer


def stop_words_of(language: str) -> frozenset[str]:
    """spaCy's frequent words of this language; none where it knows the language only by a related one."""
    tokenizer = tokenizer_of(language)
    if not isinstance(tokenizer, RememberingTokenizer) or tokenizer.language != language:
        return frozenset()
    return frozenset(tokenizer.stop_words)


def _by_rules(tokenizer: Any) -> bool:
    from spacy.tokenizer import Tokenizer

    return type(tokenizer.tokenizer.tokenizer) is Tokenizer  # Chinese, Japanese and others have one of their own


@dataclass(frozen=True, slots=True)
class _Part:
    """What stands between two spaces. marks: of each word its start, its end, ends a sentence, is punctuation."""

    words: tuple[str, ...]
    marks: tuple[tuple[int, int, bool, bool], ...]
    ends_sentence: bool  # whether one of the words may


class RememberingTokenizer(WordTokenizer):  # type: ignore[misc]
    """The same words and sentences as datatrove's SpaCyTokenizer of this language."""

    def __init__(self, original: Any) -> None:
        super().__init__(original.language)
        self._original = original
        self._nlp = original.tokenizer
        rules = self._nlp.tokenizer.rules
        self._phrases = [rule for rule in rules if len(rule.split()) > 1]  # "EE. UU." in Spanish
        # spaCy drops the rule for ":)" where ") :" beside it could be a smiley too: only the whole text tells.
        self._smileys = {rule for rule in rules if len(rule) > 1 and not _ORDINARY.fullmatch(rule)}
        self._with_smiley: set[str] = set()
        self._sentence_ends = self._nlp.get_pipe("sentencizer").punct_chars
        self._pieces: dict[str, _Part] = {}
        self._characters = 0

    @property
    def stop_words(self) -> set[str]:
        """The language's frequent words."""
        words: set[str] = self._nlp.Defaults.stop_words
        return words

    def word_tokenize(self, text: str) -> list[str]:
        """The words and punctuation marks in order."""
        texts = text.split()
        pieces = self._known(texts)
        if self._needs_all(text, texts):
            words: list[str] = self._original.word_tokenize(text)
            return words
        return [word for piece in texts for word in pieces[piece].words]

    def sent_tokenize(self, text: str) -> list[str]:
        """The sentences without the space around them."""
        sentences = (text[start:stop].strip() for start, stop in self.span_tokenize(text))
        return [sentence for sentence in sentences if sentence]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Each sentence's first character, and the one after its last.

        One begins with the first word, or more than a single space, that follows an end mark and is no punctuation.
        """
        texts = text.split()
        pieces = self._known(texts)
        if self._needs_all(text, texts):
            spans: list[tuple[int, int]] = self._original.span_tokenize(text)
            return spans
        starts: list[int] = []
        stops: list[int] = []
        ended, stop = True, 0
        for run in _RUNS.finditer(text):
            at = run.start()
            piece = pieces.get(run.group())
            if piece is None:
                start = at + (run.group()[0] == " " and at > 0)  # one space belongs to the word before it
                if start == run.end():
                    continue
                marks: tuple[tuple[int, int, bool, bool], ...] = ((start - at, run.end() - at, False, False),)
            elif not ended and not piece.ends_sentence:
                stop = run.end()
                continue
            else:
                marks = piece.marks
            for first, last, ends, punctuation in marks:
                if ended and (not starts or not (punctuation or ends)):
                    if starts:
                        stops.append(stop)
                    starts.append(at + first)
                    ended = False
                ended = ended or ends
                stop = at + last
        return list(zip(starts, [*stops, stop], strict=True)) if starts else []

    def _known(self, texts: list[str]) -> dict[str, _Part]:
        missing = [text for text in dict.fromkeys(texts) if text not in self._pieces]
        if not missing:
            return self._pieces
        self._characters += sum(map(len, missing))
        if self._characters > _REMEMBERED_CHARACTERS:
            self._pieces.clear()
            self._with_smiley.clear()
            missing = list(dict.fromkeys(texts))
            self._characters = sum(map(len, missing))
        # What spaCy remembers of new words goes at the end of the zone; it would grow for ever.
        with self._nlp.memory_zone():
            tokens = iter(self._nlp.tokenizer(" ".join(missing)))
            for text in missing:
                self._pieces[text] = piece = self._next_piece(tokens)
                if not self._smileys.isdisjoint(piece.words) or text in self._smileys:
                    self._with_smiley.add(text)
        return self._pieces

    def _needs_all(self, text: str, texts: list[str]) -> bool:
        """Whether a piece's words may depend on its neighbors."""
        return not self._with_smiley.isdisjoint(texts) or any(phrase in text for phrase in self._phrases)

    def _next_piece(self, tokens: Iterator[Any]) -> _Part:
        words: list[str] = []
        marks: list[tuple[int, int, bool, bool]] = []
        at = 0
        for token in tokens:
            word = token.text
            words.append(word)
            marks.append((at, at + len(word), word in self._sentence_ends, token.is_punct))
            at += len(word)
            if token.whitespace_:
                break
        return _Part(tuple(words), tuple(marks), any(mark[2] for mark in marks))

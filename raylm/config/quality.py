"""Thresholds of the rules of Gopher, C4 and FineWeb, named as datatrove's filters name them, with their defaults."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import Field, field_validator

from raylm.config.base import Settings


class GopherQuality(Settings):
    """Gopher's rules on words and lines; null switches one off."""

    min_doc_words: int | None = 50
    max_doc_words: int | None = 100_000
    min_avg_word_length: float | None = 3
    max_avg_word_length: float | None = 10
    max_symbol_word_ratio: float | None = 0.1
    max_bullet_lines_ratio: float | None = 0.9
    max_ellipsis_lines_ratio: float | None = 0.3
    max_non_alpha_words_ratio: float | None = Field(
        0.8, description="Least share of words with a letter in them, in spite of its name."
    )
    min_stop_words: int | None = 2
    stop_words: list[str] | None = Field(
        None, description="Gopher's eight for English, spaCy's for other languages when not set."
    )


class GopherRepetition(Settings):
    """Gopher's rules on what comes again, in shares of lines, paragraphs or letters; null switches one off."""

    dup_line_frac: float | None = 0.3
    dup_para_frac: float | None = 0.3
    dup_line_char_frac: float | None = 0.2
    dup_para_char_frac: float | None = 0.2
    top_n_grams: dict[Annotated[int, Field(ge=1)], float] = Field(
        default_factory=lambda: {2: 0.2, 3: 0.18, 4: 0.16}, description="Words → largest share of the most frequent."
    )
    dup_n_grams: dict[Annotated[int, Field(ge=1)], float] = Field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
        description="Words → largest share of all that come again.",
    )


class C4Quality(Settings):
    """C4's rules on lines and documents; -1 switches a number's rule off."""

    split_paragraph: bool = Field(True, description="Judge lines; false: sentences.")
    remove_citations: bool = True
    filter_no_terminal_punct: bool = Field(
        True, description="Cut lines that end without . ? ! or a quotation mark; other scripts' marks do not count."
    )
    min_num_sentences: int = 5
    min_words_per_line: int = 3
    max_word_length: int = 1000
    filter_lorem_ipsum: bool = True
    filter_javascript: bool = True
    filter_curly_bracket: bool = True
    filter_policy: bool = True


class FineWebQuality(Settings):
    """FineWeb's rules on lines."""

    line_punct_thr: float = 0.12
    line_punct_exclude_zero: bool = False
    stop_chars: list[str] | None = Field(None, description="What ends a sentence; every script's marks when not set.")
    short_line_thr: float = 0.67
    short_line_length: int = 30
    char_duplicates_ratio: float = 0.01
    new_line_ratio: float = 0.3


QualityRule: TypeAlias = Literal["gopher_quality", "gopher_repetition", "c4", "fineweb"]


class Quality(Settings):
    """Judge documents by the rules of Gopher, C4 and FineWeb, as datatrove's filters do."""

    rules: Annotated[list[QualityRule], Field(min_length=1)] = Field(
        default_factory=lambda: list(get_args(QualityRule)),
        description="Which rules, in which order; c4 also cuts lines out.",
    )
    gopher_quality: GopherQuality = Field(default_factory=GopherQuality)
    gopher_repetition: GopherRepetition = Field(default_factory=GopherRepetition)
    c4: C4Quality = Field(default_factory=C4Quality)
    fineweb: FineWebQuality = Field(default_factory=FineWebQuality)
    language: str = Field("en", description="Of documents whose metadata name none; it decides what a word is.")
    without_words: Literal["drop", "keep", "stop"] = Field(
        "drop", description="What to do with a document in a language whose words cannot be told apart here."
    )

    @field_validator("rules")
    @classmethod
    def _each_once(cls, value: list[QualityRule]) -> list[QualityRule]:
        if len(value) != len(set(value)):
            raise ValueError(f"each rule may come once, got {value}")
        return value

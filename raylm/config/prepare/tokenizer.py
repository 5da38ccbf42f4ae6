"""The tokenizer that is trained or loaded: the section `prepare.tokenizer`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from raylm.config.base import Settings
from raylm.config.paths import PathOrUrl


class TokenizerSettings(Settings):
    """The tokenizer: trained on the sources, or loaded from a folder or file."""

    path: PathOrUrl | None = Field(
        None,
        description="A Hugging Face folder, a SentencePiece .model or tiktoken ranks, on any fsspec URL; trained when "
        "not set.",
    )
    pattern: str | None = Field(
        None, description="How tiktoken ranks cut texts: gpt2, p50k, cl100k, o200k or a regular expression."
    )
    eos: str | None = Field(None, description="The end-of-text token, where it is not the tokenizer's own.")
    max_unknown: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of a source's tokens that may stand for what the tokenizer cannot spell; with more nothing "
        "is published.",
    )
    special_tokens: list[str] = Field(default_factory=list, description="More tokens that no text is ever cut into.")
    kind: Literal["bpe", "unigram"] = Field("bpe", description="What is trained.")
    vocab_size: int = Field(8192, ge=260, le=1_000_000, description="Size of a trained tokenizer, all tokens counted.")
    sample_bytes: int = Field(20_000_000, gt=0, description="Text that a tokenizer is trained on, at most.")
    alphabet: Literal["byte_level", "byte_fallback"] = Field(
        "byte_level", description="What is trained on: bytes, or characters, of which rare ones are spelled in bytes."
    )
    split_digits: Literal["none", "each", "up_to_three"] = Field(
        "none", description="Whether a number may be one token, each digit is one, or up to three digits."
    )
    normalization: Literal["none", "nfc", "nfkc"] = Field(
        "none", description="Unicode form that texts are brought into."
    )
    min_frequency: int = Field(0, ge=0, description="For bpe: pairs that come less often are not joined.")
    max_token_length: int | None = Field(
        None,
        ge=2,
        description="Bytes of a token at most, characters with alphabet: byte_fallback; for unigram 16 when not set.",
    )

    @property
    def trained_kind(self) -> str:
        """What is trained, in words."""
        kind = {"bpe": "BPE", "unigram": "unigram"}[self.kind]
        return (
            f"Byte-level {kind}" if self.alphabet == "byte_level" else f"{kind[0].upper()}{kind[1:]} with byte fallback"
        )

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.path is None:
            if self.pattern is not None:
                raise ValueError("pattern is for tiktoken ranks: give their path, or remove it")
            for token in (*self.special_tokens, *([self.eos] if self.eos else [])):
                _check_apart(token)
            least = (260 if self.alphabet == "byte_level" else 320) + len(self.special_tokens)
            if self.vocab_size < least:
                raise ValueError(
                    f"vocab_size={self.vocab_size} is too small for all bytes and the special tokens: at least {least}"
                )
            if self.kind == "unigram" and self.min_frequency:
                raise ValueError("min_frequency is for bpe: unigram keeps the pieces that are most likely")
            return self
        for name in ("kind", "alphabet", "split_digits", "normalization", "min_frequency", "max_token_length"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for a tokenizer that is trained; remove it, or path, which loads one")
        return self


def _check_apart(token: str) -> None:
    """A trained tokenizer never joins letters and signs, so such a token is never mistaken for a piece of text."""
    ends_in_signs = not any(character.isalnum() or character.isspace() for character in (token[:1], token[-1:]))
    if not ends_in_signs or not any(character.isalnum() for character in token):
        raise ValueError(f"special token {token!r}: it has to begin and end with a sign, such as <|user|> or [SEP]")

"""tiktoken's ranks become a tokenizer of the tokenizers library that gives the same ids.

Ranks are a file of lines `base64 rank`; how texts are cut is the name of an encoding, or a pattern.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from raylm.errors import ConfigError, DataError
from raylm.prep.tokenizer.folder import TokenizerFiles, refused_by_library
from raylm.prep.tokenizer.train import END_OF_TEXT

_CONTRACTED = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


@dataclass(frozen=True)
class Encoding:
    """How an encoding cuts texts into words, the number of its ranks, and the ids of its special tokens.

    The patterns say what tiktoken's say, in the words of another engine: `\\z` is its `$`.
    """

    pattern: str
    ranks: int
    special: Mapping[str, int]


_FILL = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260, "<|endofprompt|>": 100276}
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+\z|\s+(?!\S)|\s"
ENCODINGS = {
    "gpt2": Encoding(_GPT2, 50256, {END_OF_TEXT: 50256}),
    "p50k": Encoding(_GPT2, 50280, {END_OF_TEXT: 50256}),
    "cl100k": Encoding(
        rf"'(?i:[sdmt]|ll|ve|re)|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
        r"\s+\z|\s*[\r\n]|\s+(?!\S)|\s",
        100256,
        {END_OF_TEXT: 100257, **_FILL},
    ),
    "o200k": Encoding(
        rf"{_BEFORE}[{_UPPER}]*[{_LOWER}]+{_CONTRACTED}?|{_BEFORE}[{_UPPER}]+[{_LOWER}]*{_CONTRACTED}?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        199998,
        {END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
    ),
}
_ALIASES = {"r50k": "gpt2", "r50k_base": "gpt2", "p50k_base": "p50k", "cl100k_base": "cl100k", "o200k_base": "o200k"}
_PATTERN_SIGNS = set("\\[](){}|+*?^$.")  # a pattern has one of them, a name has none


def from_tiktoken(content: bytes, url: str, pattern: str | None, eos: str | None) -> TokenizerFiles:
    """The tokenizer of these ranks; special tokens stand where the encoding has them, or after the ranks."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    encoding = encoding_of(pattern, url)
    ranks = read_ranks(content, url)
    characters = byte_characters()

    def spelled(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    vocabulary = {spelled(token): rank for token, rank in ranks.items()}
    behind = max(ranks.values()) + 1
    special = encoding.special
    if len(ranks) != encoding.ranks or (eos is not None and eos not in special):
        special = {eos or END_OF_TEXT: behind}
    if set(special.values()) != {len(ranks)}:
        # The library numbers added tokens without gaps, unless the model has them already.
        vocabulary |= special
    merges = [(spelled(left), spelled(right)) for left, right in merges_of(ranks)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(encoding.pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for token in special:
        if len(tokenizer.encode(token, add_special_tokens=False).ids) == 1:
            raise DataError(
                f"the pattern for {url} takes {token!r} as one word: a text that spells it could not be told from it",
                hint="set prepare.tokenizer.pattern to one that parts letters from signs, or .eos to another token",
            )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return TokenizerFiles(bytes(tokenizer.to_str(pretty=False), "utf-8"), eos or END_OF_TEXT)


def encoding_of(pattern: str | None, url: str) -> Encoding:
    """The encoding of this name, or one with this pattern."""
    from tokenizers import Regex

    names = ", ".join(ENCODINGS)
    if pattern is None:
        raise ConfigError(
            f"{url} holds tiktoken ranks, which do not say how texts are cut into words",
            hint=f"set prepare.tokenizer.pattern to {names}, or to a regular expression",
        )
    known = ENCODINGS.get(_ALIASES.get(pattern, pattern))
    if known is not None:
        return known
    if not _PATTERN_SIGNS & set(pattern):
        raise ConfigError(
            f"prepare.tokenizer.pattern is {pattern!r}, which is no encoding that raylm knows",
            hint=f"set it to {names}, or to a regular expression",
        )
    with refused_by_library(
        lambda error: ConfigError(
            f"prepare.tokenizer.pattern is no regular expression: {error}",
            hint=f"correct {pattern!r}, or name an encoding: {names}",
        )
    ):
        Regex(pattern)
    return Encoding(pattern, 0, {})


def is_ranks(content: bytes) -> bool:
    """Whether the file begins as tiktoken's do: base64, a space, a number."""
    first = content.split(b"\n", 1)[0].split()
    return len(first) == 2 and first[1].isdigit() and _decoded(first[0]) is not None


def read_ranks(content: bytes, url: str) -> dict[bytes, int]:
    """Tokens and their ranks, the lowest rank first."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        parts = line.split()
        token = _decoded(parts[0]) if len(parts) == 2 and parts[1].isdigit() else None
        if token is None or token in ranks:
            why = "is no `base64 rank`" if token is None else "has a token that an earlier line has"
            raise DataError(f"{url}: line {number} {why}: {line[:60]!r}", hint="restore the file")
        ranks[token] = int(parts[1])
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing or len(set(ranks.values())) < len(ranks):
        why = f"{len(missing)} of the 256 bytes have no rank" if missing else "two tokens share a rank"
        raise DataError(f"{url} is not whole: {why} ({len(ranks):,} lines)", hint="restore the file")
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def merges_of(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The two parts that make each token when it is put together from bytes by ranks below its own."""
    for token, rank in ranks.items():
        if len(token) > 1:
            parts = _put_together(token, ranks, rank)
            # What comes as more than two is only ever found whole, which `ignore_merges` does.
            if len(parts) == 2:
                yield parts[0], parts[1]


def _put_together(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(left + right, below) for left, right in itertools.pairwise(parts)]
        best = min(joined)
        if best >= below:
            break
        place = joined.index(best)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def _decoded(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) or None
    except binascii.Error:
        return None


def byte_characters() -> dict[int, str]:
    """The character that stands for each byte: itself where it can be printed, or one from 256 on, in order."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(256 + number) for number, byte in enumerate(others)}

"""Tokenizers that others made: no text spells a control token, and what cannot be spelled is counted, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from raylm.config.prepare.tokenizer import TokenizerSettings
from raylm.errors import DataError
from raylm.prep.checks.requirements import refuse_unspelled
from raylm.prep.pack import _spelled
from raylm.prep.tokenizer import import_tokenizer, load
from raylm.prep.tokenizer.folder import TokenizerFiles, write_tokenizer
from raylm.prep.tokenizer.spelling import lost_characters
from raylm.storage import StoragePath
from raylm.testing.external import external_data

TEXTS = ["the river </s> and the bridge", "a line\n</s>\nand another", "</s>", "</s></s> x", "nothing of it"]


def written(folder: Path, tokenizer: Tokenizer, eos: str = "</s>") -> StoragePath:
    tokenizer.add_special_tokens([AddedToken(eos, special=True, normalized=False)])
    write_tokenizer(StoragePath(str(folder)), TokenizerFiles(tokenizer.to_str().encode(), eos))
    return StoragePath(str(folder))


def letters(text: str) -> list[str]:
    return sorted(set(text))


def words() -> Tokenizer:
    """Whole words, one of which is the end of text."""
    known = {"<unk>": 0, "</s>": 1, **{letter: n for n, letter in enumerate("</s>", 2)}}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def unigram(least: float) -> Callable[[], Tokenizer]:
    """Pieces without `<`; the end of text has the least score, from which that of the unknown is taken."""

    def made() -> Tokenizer:
        pieces = [("<unk>", 0.0), ("</s>", least)]
        pieces += [(letter, -3.0) for letter in letters("the river and bridge a line another nothing of it x/s>\n")]
        return Tokenizer(models.Unigram(pieces, unk_id=0))

    return made


def whole_words_of_bpe() -> Tokenizer:
    vocabulary = {letter: n for n, letter in enumerate(["<unk>", "</s>", *letters("".join(TEXTS))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s"), "isolated")
    return tokenizer


@pytest.mark.parametrize(
    "made",
    [words, unigram(-10_000.0), unigram(-1.0), whole_words_of_bpe],
    ids=["whole words", "a hidden piece", "a likely piece", "words that are not joined"],
)
def test_no_text_is_cut_into_a_control_token(tmp_path: Path, made: Callable[[], Tokenizer]) -> None:
    folder = written(tmp_path, made())
    tokenizer, facts = load(folder)
    assert any(facts.eos_id in one.ids for one in tokenizer.encode_batch(TEXTS, add_special_tokens=False)), "else moot"
    tokens, lost = _spelled(folder, tokenizer, facts, TEXTS)
    ends = tokens.lengths.cumsum() - 1
    assert [int(place) for place in (tokens.ids == facts.eos_id).nonzero()[0]] == ends.tolist()
    assert not lost.any()
    alone, _ = _spelled(folder, tokenizer, facts, TEXTS[-1:])
    assert tokens.ids[-len(alone.ids) :].tolist() == alone.ids.tolist(), "others are as they were"


def test_a_control_token_that_has_no_other_spelling_is_told_in_words(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "|": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = written(tmp_path, tokenizer, eos="|")
    with pytest.raises(DataError, match="is a control token"):
        _spelled(folder, *load(folder), ["a | b"])


def without_unknown() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate("abcdef")}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_characters_that_have_no_token_are_counted(tmp_path: Path) -> None:
    folder = written(tmp_path, without_unknown())
    tokens, lost = _spelled(folder, *load(folder), ["abc def", "ab桥 c水", "桥水"])
    assert lost.tolist() == [0, 2, 2]
    assert tokens.lengths.tolist() == [7, 4, 1]


def test_the_characters_between_tokens_are_counted_without_blanks() -> None:
    assert lost_characters("a b c", [(0, 1), (4, 5)]) == 1
    assert lost_characters("abc", []) == 3
    assert lost_characters("", []) == 0


def test_a_text_that_cannot_be_spelled_is_refused_beyond_a_share() -> None:
    counts: dict[str, Any] = {"web": {"en": {"tokens": 900, "unknown": 0}, "zh": {"tokens": 0, "unknown": 100}}}
    refuse_unspelled(counts, 0.1)
    with pytest.raises(DataError, match=r"cannot spell 10\.0% of the text of source 'web'"):
        refuse_unspelled(counts, 0.05)


INPUTS = external_data("../faults/inputs")


@pytest.mark.skipif(not INPUTS.exists(), reason="../faults/inputs is not beside RAYLM_TEST_DATA")
def test_eos_unigram_of_others(tmp_path: Path) -> None:
    place = StoragePath(str(tmp_path))
    import_tokenizer(StoragePath(str(INPUTS / "unigram-without-lt.model")), place, TokenizerSettings())
    tokens, _ = _spelled(place, *load(place), ["the river </s> and the bridge", "a line\n</s>\nand another"])
    eos = load(place)[1].eos_id
    assert (tokens.ids == eos).sum() == 2


@pytest.mark.skipif(not INPUTS.exists(), reason="../faults/inputs is not beside RAYLM_TEST_DATA")
def test_a_tokenizer_without_an_unknown_token_of_others(tmp_path: Path) -> None:
    place = StoragePath(str(tmp_path))
    import_tokenizer(StoragePath(str(INPUTS / "tokenizer-no-unknown")), place, TokenizerSettings())
    _, lost = _spelled(place, *load(place), ["委员会星期二开会", "river stone"])
    assert lost[0] == 8


def bytes_of_unigram() -> Tokenizer:
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -5.0) for byte in range(256))]
    return Tokenizer(models.Unigram([*pieces, *((letter, -1.0) for letter in "ab ")], unk_id=0, byte_fallback=True))


def test_the_spelling_of_a_byte_is_no_byte(tmp_path: Path) -> None:
    folder = written(tmp_path, bytes_of_unigram())
    tokenizer, facts = load(folder)
    byte = tokenizer.token_to_id("<0x41>")
    assert byte in tokenizer.encode("a <0x41> b", add_special_tokens=False).ids, "else moot"
    tokens, _ = _spelled(folder, tokenizer, facts, ["a <0x41> b", "a A b"])
    ends = tokens.lengths.cumsum()
    assert byte not in tokens.ids[: ends[0]]
    assert byte in tokens.ids[ends[0] :]


def test_what_a_tokenizer_cuts_out_is_counted(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    cut = pre_tokenizers.Split(Regex(r"[\u4e00-\u9fff]"), "removed")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    folder = written(tmp_path, tokenizer)
    assert _spelled(folder, *load(folder), ["ab 桥水 c", "ab"])[1].tolist() == [2, 0]


@pytest.mark.parametrize(
    "model",
    [models.Unigram([("a", -1.0), ("</s>", -9.0)]), models.WordLevel({"a": 0, "b": 1}, unk_token="[UNK]")],
    ids=["Unigram", "WordLevel"],
)
def test_a_tokenizer_that_stops_at_what_it_does_not_know_is_refused_in_words(tmp_path: Path, model: Any) -> None:
    folder = written(tmp_path, Tokenizer(model))
    with pytest.raises(DataError, match="has no unknown token"):
        _spelled(folder, *load(folder), ["a b"])

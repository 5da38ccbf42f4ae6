"""Tokenizers: training gives the same bytes each time and loses no text; what is loaded gives its own library's ids."""

from __future__ import annotations

import base64
import functools
import gzip
import io
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raylm.config.prepare.tokenizer import TokenizerSettings
from raylm.errors import DataError, RaylmError
from raylm.prep.tokenizer import import_tokenizer, load, train, write_tokenizer
from raylm.prep.tokenizer.from_tiktoken import ENCODINGS, merges_of, read_ranks
from raylm.storage import StoragePath
from raylm.testing.external import external_data

DATA = external_data("")
MODELS = external_data("tokenizers")
needs_models = pytest.mark.skipif(not MODELS.is_dir(), reason="the folder of real tokenizers is not on this machine")

PROSE = [str(text)[:1500] for _, text in sorted(topics.items())[:24]]
WORDS = "the cat sat on the mat, the cats' mats sit; naïve café in Zürich 1984, 2024 and 12345 <0x41> "
TEXTS = [
    *PROSE,
    *(f"{WORDS[turn % 40 :]}\n\tdef f{turn}(x):\n        return x + {turn}\n" for turn in range(60)),
    "東京は日本の首都です。" * 8,
    "Привет, мир! Как дела? " * 8,
]
HARD = [
    *("", " ", "   ", "\n", "a\n \n  b\r\n\r\n c  \n  ", "  two before", "behind  ", "\t\ttabs", "\x00\x1f\x7f\u2028"),
    *("▁ ▁▁a▁b", "<s> </s> <unk> <0x0A> <0xFF> <|endoftext|> <|user|>", "e\u0301 ﬁ Å ① ｆｕｌｌ", "ſs 's'ſ K'K I'LL"),
    *("東京は日本の首都です", "Привет,  мир! 12345678", "नमस्ते दुनिया", "مرحبا بالعالم", "สวัสดีชาวโลก", "한국어"),
    *("👩‍👩‍👧‍👦 🇨🇭", "a" * 300, " " * 300, "\ufffd\ufffe", "the cats sat on 1984 mats\n\n"),
]
KINDS = [
    {"kind": kind, "alphabet": way, "split_digits": digits}
    for kind in ("bpe", "unigram")
    for way, digits in (("byte_level", "none"), ("byte_level", "each"), ("byte_fallback", "up_to_three"))
]
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def names(kind: dict[str, Any]) -> str:
    return "-".join(kind.values())


@functools.cache
def trained(kind: str, bytes_: str, digits: str = "none", normalize: str = "none") -> Any:
    """A tokenizer of 600 that was trained on TEXTS, set as `load` sets it."""
    from tokenizers import Tokenizer

    asked: Any = {"kind": kind, "alphabet": bytes_, "split_digits": digits, "normalization": normalize}
    tokenizer = Tokenizer.from_str(train(TEXTS, TokenizerSettings(vocab_size=600, **asked)).definition.decode())
    tokenizer.encode_special_tokens = True
    return tokenizer


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return found


def brought(tmp_path: Path, source: Path, **asked: Any) -> tuple[Any, Any]:
    """What `import_tokenizer` made of it: the tokenizer and its facts."""
    folder = StoragePath(str(tmp_path / "brought"))
    import_tokenizer(StoragePath(str(source)), folder, TokenizerSettings(path=str(source), **asked))
    return load(folder)


def same(
    tokenizer: Any, reference: Callable[[str], Sequence[int]], texts: Sequence[str], *, any_order: bool = False
) -> None:
    arranged = sorted if any_order else list
    wrong = [text for text in texts if arranged(ids(tokenizer, text)) != arranged(reference(text))]
    assert [text[:60] for text in wrong] == []


def real_texts() -> list[str]:
    """Sentences in four languages, web pages and an encyclopedia."""
    texts: list[str] = []
    for language in ("cs", "de", "en", "fr"):
        with gzip.open(DATA / f"translation/multi30k_val.{language}.gz", "rt") as lines:
            texts += [line.rstrip("\n") for line in lines][:300]
    with gzip.open(DATA / "pretrain-text/c4_docs.jsonl.gz", "rt") as lines:
        texts += [json.loads(line)["text"] for line in lines][:50]
    with gzip.open(DATA / "pretrain-text/wikipedia_articles.txt.gz", "rt") as articles:
        texts.append(articles.read()[:100_000])
    return texts


# Training


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_any_text_comes_back(kind: dict[str, str]) -> None:
    tokenizer = trained(kind["kind"], kind["alphabet"], kind["split_digits"])

    @given(text=any_text)
    @settings(max_examples=60, deadline=None)
    def comes_back(text: str) -> None:
        found = ids(tokenizer, text)
        assert tokenizer.decode(found, skip_special_tokens=False) == text
        assert tokenizer.token_to_id("<|endoftext|>") not in found

    for text in (*HARD, *TEXTS[-5:]):
        comes_back = example(text=text)(comes_back)
    comes_back()


@pytest.mark.parametrize("form", ["nfc", "nfkc"])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_normalised_text_comes_back(kind: str, form: str) -> None:
    tokenizer = trained(kind, "byte_level", "none", form)
    for text in HARD[11:19]:
        assert tokenizer.decode(ids(tokenizer, text)) == unicodedata.normalize(form.upper(), text)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_training_uses_the_room_and_what_it_learned(kind: dict[str, str]) -> None:
    tokenizer = trained(kind["kind"], kind["alphabet"], kind["split_digits"])
    # Unigram may find fewer pieces worth keeping in so little text.
    assert 0.8 * 600 <= tokenizer.get_vocab_size() <= 600
    assert sorted(tokenizer.get_vocab().values()) == list(range(tokenizer.get_vocab_size()))
    assert len(ids(tokenizer, TEXTS[0])) < len(TEXTS[0]) / (1.5 if kind["alphabet"] == "byte_fallback" else 2)


@pytest.mark.parametrize(
    ("digits", "expected"),
    [("each", ["1", "9", "8", "4", "5"]), ("up_to_three", ["198", "45"]), ("none", None)],
)
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_digits_are_split_as_asked(kind: str, digits: str, expected: list[str] | None) -> None:
    # Each number is seen often, so that nothing but the setting keeps it apart.
    asked: Any = {"kind": kind, "split_digits": digits}
    texts = ["x19845\n19845 198 45 " * 200]
    built = train(texts, TokenizerSettings(vocab_size=300, **asked))
    from tokenizers import Tokenizer

    assert Tokenizer.from_str(built.definition.decode()).encode("19845").tokens == (expected or ["19845"])


_DIGEST = """
import hashlib, sys
from test_tokenizer import TEXTS
from raylm.config.prepare.tokenizer import TokenizerSettings
from raylm.prep.tokenizer import train
for kind in ("bpe", "unigram"):
    for way in ("byte_level", "byte_fallback"):
        built = train(TEXTS, TokenizerSettings(kind=kind, alphabet=way, vocab_size=600))
        print(kind, way, hashlib.sha256(built.definition).hexdigest())
"""


def test_training_gives_the_same_bytes_in_any_process() -> None:
    answers = []
    for threads, seed in (("1", "1"), ("4", "2")):
        more = {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true", "PYTHONHASHSEED": seed}
        path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
        environment = os.environ | more | {"PYTHONPATH": path}
        command = [sys.executable, "-c", _DIGEST]
        answers.append(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    assert answers[0] == answers[1]
    assert len(answers[0].split()) == 12


def test_pairs_that_are_rare_are_not_joined() -> None:
    texts = ["often " * 50 + "seldom " * 3]
    few = train(texts, TokenizerSettings(vocab_size=400, min_frequency=10))
    vocabulary = json.loads(few.definition)["model"]["vocab"]
    assert "often" in vocabulary or "Ġoften" in vocabulary
    assert not any("sel" in token for token in vocabulary)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_no_token_is_longer_than_asked(kind: Any) -> None:
    short = train(TEXTS, TokenizerSettings(kind=kind, vocab_size=400, max_token_length=3))
    model = json.loads(short.definition)["model"]
    pieces = [piece for piece, _ in model["vocab"]] if kind == "unigram" else list(model["vocab"])
    assert max(len(piece) for piece in pieces if piece != "<|endoftext|>") == 3


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_transformers_loads_a_trained_tokenizer(kind: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    asked = TokenizerSettings(vocab_size=600, special_tokens=["<|user|>"], eos="</s>", **kind)
    write_tokenizer(StoragePath(str(tmp_path)), train(TEXTS, asked))
    ours, facts = load(StoragePath(str(tmp_path)))
    theirs = AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    assert (theirs.eos_token, theirs.eos_token_id, len(theirs)) == ("</s>", facts.eos_id, facts.vocab_size)
    for text in TEXTS[-3:]:
        assert theirs(text, add_special_tokens=False).input_ids == ids(ours, text)
        assert theirs.decode(ids(ours, text)) == text
    (user,) = theirs("<|user|>", add_special_tokens=False).input_ids
    assert user == ours.token_to_id("<|user|>")
    # In a text it is plain text.
    assert user not in ids(ours, "<|user|>")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("way", ["byte_level", "byte_fallback"])
def test_next_to_no_text_still_trains(kind: Any, way: Any, tmp_path: Path) -> None:
    for number, texts in enumerate(([""], ["a"], ["\n"], ["東京"])):
        folder = StoragePath(str(tmp_path / str(number)))
        write_tokenizer(folder, train(texts, TokenizerSettings(kind=kind, alphabet=way, vocab_size=400)))
        tokenizer, _ = load(folder)
        assert tokenizer.decode(ids(tokenizer, "any text 東京\n")) == "any text 東京\n"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pattern": "gpt2"}, "pattern is for tiktoken ranks"),
        ({"special_tokens": ["user"]}, "special token 'user': it has to begin and end with a sign"),
        ({"special_tokens": [""]}, "special token ''"),
        ({"eos": "<a b c"}, "special token '<a b c'"),
        ({"vocab_size": 300, "alphabet": "byte_fallback"}, "vocab_size=300 is too small .* at least 320"),
        ({"kind": "unigram", "min_frequency": 2}, "min_frequency is for bpe"),
        ({"path": "x", "kind": "unigram"}, "kind is for a tokenizer that is trained"),
        ({"path": "x", "split_digits": "each"}, "split_digits is for a tokenizer that is trained"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TokenizerSettings(**asked)


# SentencePiece


def piece_model(tmp_path: Path, **how: Any) -> Path:
    """A small SentencePiece model trained on TEXTS."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXTS for line in text.splitlines()]),
        model_writer=model,
        minloglevel=2,
        num_threads=1,
        **{"vocab_size": 420, "hard_vocab_limit": False, **how},
    )
    path = tmp_path / "small.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "how",
    [
        {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"byte_fallback": False, "normalization_rule_name": "nmt_nfkc"},
        {"byte_fallback": True, "normalization_rule_name": "nfkc", "add_dummy_prefix": False},
        {"byte_fallback": True, "split_digits": True, "user_defined_symbols": ["<sep>", "@@"]},
    ],
    ids=["like-llama", "defaults", "no-prefix", "own-symbols"],
)
def test_a_sentencepiece_model_gives_its_own_ids(kind: str, how: dict[str, Any], tmp_path: Path) -> None:
    import sentencepiece
    from transformers import AutoTokenizer

    path = piece_model(tmp_path, model_type=kind, **how)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer, facts = brought(tmp_path, path)
    own = ["a<sep>b <sep> c@@", "<sep>"] if "user_defined_symbols" in how else []
    rows = [text for text in TEXTS if "****" in text] if kind == "unigram" else []  # some cuts are equally likely
    same(tokenizer, reference.encode, rows, any_order=True)
    same(tokenizer, reference.encode, [text for text in (*HARD, *TEXTS, *own) if text not in rows])
    assert (facts.eos_id, facts.vocab_size) == (reference.eos_id(), reference.get_piece_size())
    theirs = AutoTokenizer.from_pretrained(str(tmp_path / "brought"), local_files_only=True)
    assert theirs(TEXTS[-5], add_special_tokens=False).input_ids == reference.encode(TEXTS[-5])
    if how["byte_fallback"]:
        assert theirs.decode(reference.encode(TEXTS[-1])) == reference.decode(reference.encode(TEXTS[-1]))

    @given(text=any_text.map(lambda text: unicodedata.normalize("NFC", text)))
    @settings(max_examples=60, deadline=None)
    def any_text_too(text: str) -> None:
        assert ids(tokenizer, text) == reference.encode(text)

    if how.get("normalization_rule_name") == "identity":
        any_text_too()


@needs_models
@pytest.mark.parametrize("name", ["mistral-7b-v0.1.tokenizer.model", "botchan_en_bpe_1000.model"])
def test_a_real_sentencepiece_model_gives_its_own_ids(name: str, tmp_path: Path) -> None:
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_file=str(MODELS / name))
    tokenizer, facts = brought(tmp_path, MODELS / name)
    same(tokenizer, reference.encode, [*real_texts(), *HARD])
    assert (facts.eos_id, facts.vocab_size) == (reference.eos_id(), reference.get_piece_size())


# tiktoken


def rank_file(tmp_path: Path) -> tuple[Path, dict[bytes, int]]:
    """Small ranks, learned from TEXTS."""
    tokenizer = trained("bpe", "byte_level")
    characters = {character: byte for byte, character in _byte_characters().items()}
    tokens = sorted(
        (number, bytes(characters[character] for character in token))
        for token, number in tokenizer.get_vocab().items()
        if token != "<|endoftext|>"
    )
    ranks = {token: rank for rank, (_, token) in enumerate(tokens)}
    path = tmp_path / "small.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return path, ranks


def _byte_characters() -> dict[int, str]:
    from raylm.prep.tokenizer.from_tiktoken import byte_characters

    return byte_characters()


def their_pattern(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The pattern that tiktoken itself has for an encoding."""
    import tiktoken_ext.openai_public as public

    monkeypatch.setattr(public, "load_tiktoken_bpe", lambda *_, **__: {})
    pattern: str = {"gpt2": public.r50k_base, "cl100k": public.cl100k_base, "o200k": public.o200k_base}[name]()[
        "pat_str"
    ]
    return pattern


@pytest.mark.parametrize("name", ["gpt2", "cl100k", "o200k"])
def test_tiktoken_ranks_give_their_own_ids(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken
    from transformers import AutoTokenizer

    path, ranks = rank_file(tmp_path)
    pattern = their_pattern(name, monkeypatch)
    reference = tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    tokenizer, facts = brought(tmp_path, path, pattern=name)
    same(tokenizer, reference.encode_ordinary, [*HARD, *TEXTS])
    assert (facts.eos_id, facts.vocab_size) == (len(ranks), len(ranks) + 1)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path / "brought"), local_files_only=True)
    assert theirs(TEXTS[0]).input_ids == reference.encode_ordinary(TEXTS[0])
    assert theirs.eos_token_id == facts.eos_id

    @given(text=any_text)
    @settings(max_examples=100, deadline=None)
    def any_text_too(text: str) -> None:
        assert ids(tokenizer, text) == reference.encode_ordinary(text)
        assert tokenizer.decode(reference.encode_ordinary(text)) == text

    any_text_too()


def test_an_encoding_keeps_the_ids_of_its_special_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raylm.prep.tokenizer import from_tiktoken

    path, ranks = rank_file(tmp_path)
    gap = from_tiktoken.Encoding(ENCODINGS["cl100k"].pattern, len(ranks), {"<|endoftext|>": 901, "<|fim|>": 903})
    monkeypatch.setitem(ENCODINGS, "cl100k", gap)
    tokenizer, facts = brought(tmp_path, path, pattern="cl100k_base", special_tokens=["<|user|>"])
    found = [tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|fim|>")]
    assert found == [901, 903]
    assert tokenizer.token_to_id("<|user|>") not in {None, *ranks.values(), 901, 903}
    assert facts.vocab_size > 903


@needs_models
@pytest.mark.parametrize("name", ["gpt2", "cl100k", "o200k"])
def test_real_tiktoken_ranks_give_their_own_ids(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    path = tmp_path / "gpt2.tiktoken"
    path.write_bytes(gzip.decompress((MODELS / "gpt2.tiktoken.gz").read_bytes()))
    ranks = read_ranks(path.read_bytes(), "here")
    reference = tiktoken.Encoding(
        name, pat_str=their_pattern(name, monkeypatch), mergeable_ranks=ranks, special_tokens={}
    )
    tokenizer, facts = brought(tmp_path, path, pattern=name)
    same(tokenizer, reference.encode_ordinary, [*real_texts(), *HARD])
    assert (facts.eos_id, facts.vocab_size) == (50256, 50257)
    if name == "gpt2":
        assert sum(1 for _ in merges_of(ranks)) == 50_000  # as many as GPT-2's own list has


# What is wrong is said


def test_a_folder_with_one_foreign_file_is_brought(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path, ranks = rank_file(tmp_path)
    path.rename(tmp_path / "in/x.tiktoken")
    _, facts = brought(tmp_path, tmp_path / "in", pattern=r"\p{L}+|[^\p{L}]+", eos="<end>")
    assert facts.eos_id == len(ranks)


@pytest.mark.parametrize(
    ("change", "asked", "message"),
    [
        (None, {}, r"small.tiktoken holds tiktoken ranks.*\n?.*"),
        (None, {"pattern": "cl100l"}, "pattern is 'cl100l', which is no encoding"),
        (None, {"pattern": "(["}, "pattern is no regular expression"),
        (lambda raw: raw + b"YQ== nine\n", {"pattern": "gpt2"}, r"small.tiktoken: line 600 is no `base64 rank`"),
        (lambda raw: raw + raw[:7], {"pattern": "gpt2"}, "line 600 has a token that an earlier line has"),
        (lambda raw: raw[:500], {"pattern": "gpt2"}, "small.tiktoken: line|small.tiktoken is not whole"),
        (lambda raw: b"\x00\xff" + raw, {"pattern": "gpt2"}, "small.tiktoken is no tokenizer"),
        (lambda _: b"", {}, "small.tiktoken is no tokenizer"),
        (lambda _: b'{"a": 1}', {"eos": "</s>"}, "small.tiktoken is no tokenizer"),
    ],
)
def test_broken_ranks_are_one_error_that_names_them(
    change: Callable[[bytes], bytes] | None, asked: dict[str, str], message: str, tmp_path: Path
) -> None:
    path, _ = rank_file(tmp_path)
    if change is not None:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(RaylmError, match=message) as caught:
        brought(tmp_path, path, **asked)
    assert caught.value.hint
    assert not (tmp_path / "brought").exists()


@pytest.mark.parametrize("change", [lambda raw: raw[: len(raw) // 2], lambda raw: raw[5:], lambda raw: b"\x0a" + raw])
def test_a_broken_sentencepiece_model_is_named(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = piece_model(tmp_path, model_type="bpe")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=r"small.model is no tokenizer"):
        brought(tmp_path, path)


def test_a_sentencepiece_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = piece_model(tmp_path, model_type="char")
    with pytest.raises(DataError, match=r"small.model is a SentencePiece model of kind 4"):
        brought(tmp_path, path)


def test_an_end_of_text_that_is_missing_is_named_with_what_could_be_set(tmp_path: Path) -> None:
    path = piece_model(tmp_path, model_type="bpe", eos_id=-1)
    with pytest.raises(DataError, match=r"small.model names no end-of-text token") as caught:
        brought(tmp_path, path)
    assert "prepare.tokenizer.eos to one of its special tokens (<unk>, <s>)" in str(caught.value.hint)
    with pytest.raises(DataError, match=r"small.model has no token '</x>' to end a text with"):
        brought(tmp_path, path, eos="</x>")
    _, facts = brought(tmp_path, path, eos="<s>")
    assert facts.eos_id == 1


def test_eos_overrules_a_hugging_face_folder(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = tmp_path / "in"
    write_tokenizer(
        StoragePath(str(source)), train(TEXTS, TokenizerSettings(vocab_size=400, special_tokens=["<|end|>"]))
    )
    tokenizer, facts = brought(tmp_path, source, eos="<|end|>", special_tokens=["<|more|>"])
    assert facts.eos_id == tokenizer.token_to_id("<|end|>") != tokenizer.token_to_id("<|endoftext|>")
    theirs = AutoTokenizer.from_pretrained(str(tmp_path / "brought"), local_files_only=True)
    assert theirs.eos_token_id == facts.eos_id
    assert theirs.convert_tokens_to_ids("<|more|>") == facts.vocab_size - 1
    with pytest.raises(DataError, match=r"in has no token '</s>'"):
        brought(tmp_path, source, eos="</s>")
    (source / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match="in names no end-of-text token"):
        brought(tmp_path, source)


# How finely it cuts


def prepared_with(tmp_path: Path, units: int = 1) -> Any:
    """A dataset of two sources, of which a step said the language of one."""
    from raylm.config.job import Job
    from raylm.prep.prepare import prepare
    from raylm.prep.tasks import here

    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "b.txt").write_text("one two three\n" * 5)
    settings = {
        "sources": [
            {"name": "mixed", "kind": "jsonl", "glob": f"{tmp_path}/a.jsonl"},
            {"name": "lines", "document": "line", "glob": f"{tmp_path}/b.txt"},
        ],
        "sequence_length": 64,
        "held_out": 0.3,
        "tokenizer": {"vocab_size": 600},
        "unit_bytes": sum(len(text) + 12 for text in TEXTS) // units,
    }
    job = Job.model_validate({"name": "a", "storage": str(tmp_path / f"{units}"), "prepare": settings})
    return prepare(job, session=here)


@pytest.fixture
def told_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents of the mixed source come with the language that a step would have told."""
    from dataclasses import replace

    from raylm.prep import pack

    real = pack.pass_documents

    def told(*args: Any) -> Any:
        for document in real(*args):
            known = {"東": "ja", "П": "ru"}.get(document.text[0], "en")
            yield replace(document, meta={"language": known}) if document.source == "mixed" else document

    monkeypatch.setattr(pack, "pass_documents", told)


def test_fertility_is_counted_by_source_and_language(told_languages: None, tmp_path: Path) -> None:
    from raylm.prep.report.fertility import Fertility, by_language

    report = prepared_with(tmp_path)
    counts = report.manifest.fertility
    assert {source: sorted(languages) for source, languages in counts.items()} == {
        "mixed": ["en", "ja", "ru"],
        "lines": ["unknown"],
    }
    tokenizer, _ = load(StoragePath(f"{report.output}/tokenizer"))
    for language, texts in (("ja", TEXTS[-2:-1]), ("ru", TEXTS[-1:]), ("en", TEXTS[:-2])):
        found = [ids(tokenizer, text) for text in texts]
        assert counts["mixed"][language] == {
            "documents": len(texts),
            "bytes": sum(len(text.encode()) for text in texts),
            "characters": sum(len(text) for text in texts),
            "words": sum(len(text.split()) for text in texts),
            "tokens": sum(len(one) for one in found),
            "partial": sum("\ufffd" in tokenizer.decode([number]) for one in found for number in one),
            "unknown": 0,
        }
    assert counts["lines"]["unknown"]["words"] == 15
    assert counts["mixed"]["ja"]["partial"] > 0 == counts["lines"]["unknown"]["partial"]
    # Nothing is counted that was not packed, the ends of texts aside.
    everything = [Fertility(**one) for languages in counts.values() for one in languages.values()]
    assert sum(one.tokens + one.documents for one in everything) == report.tokens
    ratios = {(source, language): one.ratios for source, language, one in by_language(counts)}
    assert list(ratios) == [("mixed", "all"), *(("mixed", each) for each in ("en", "ru", "ja")), ("lines", "")]
    one = counts["lines"]["unknown"]
    assert ratios["lines", ""][:3] == (
        one["tokens"] / 15,
        one["bytes"] / one["tokens"],
        one["characters"] / one["tokens"],
    )


def test_fertility_does_not_depend_on_the_units(told_languages: None, tmp_path: Path) -> None:
    one, many = prepared_with(tmp_path), prepared_with(tmp_path, units=4)
    assert len(many.manifest.train) > len(one.manifest.train)
    assert many.manifest.tokenizer == one.manifest.tokenizer
    assert many.manifest.fertility == one.manifest.fertility


def test_card_and_inspect_tell_how_finely_the_tokenizer_cuts(told_languages: None, tmp_path: Path) -> None:
    from raylm.cli.inspect import rows
    from raylm.prep.report.inspect import inspect_dataset

    report = prepared_with(tmp_path)
    one = report.manifest.fertility["mixed"]["ja"]
    card = Path(report.output, "card.md").read_text()
    assert f"| mixed | ja | 1 | {one['tokens'] / one['words']:.2f} | {one['bytes'] / one['tokens']:.2f} |" in card
    shown = [value for _, value in rows(inspect_dataset(StoragePath(report.output), 0))]
    assert any(value.startswith(f"mixed, ja: {one['tokens'] / one['words']:.2f} per word") for value in shown)


def test_unknown_tokens_are_counted(tmp_path: Path) -> None:
    from raylm.prep.tokenizer import partial_and_unknown

    tokenizer, _ = brought(tmp_path, piece_model(tmp_path, model_type="bpe", byte_fallback=False))
    doubtful = partial_and_unknown(StoragePath(str(tmp_path / "brought")))
    found = ids(tokenizer, "the \N{SNOWMAN} cat")
    assert [number for number in found if doubtful["unknown"][number]] == [tokenizer.token_to_id("<unk>")]
    assert not doubtful["partial"].any()


# In a job


@pytest.mark.parametrize("kind", ["tiktoken", "model"])
def test_a_job_packs_with_a_foreign_tokenizer(kind: str, tmp_path: Path) -> None:
    from raylm.config.job import Job
    from raylm.prep.prepare import prepare
    from raylm.prep.tasks import here

    path = rank_file(tmp_path)[0] if kind == "tiktoken" else piece_model(tmp_path, model_type="unigram")
    (tmp_path / "b.txt").write_text("one two three\n" * 50)
    tokenizer = {"path": path.as_uri(), **({"pattern": "cl100k"} if kind == "tiktoken" else {})}
    source = {"document": "line", "glob": f"{tmp_path}/b.txt"}
    settings = {"sources": [source], "sequence_length": 32, "tokenizer": tokenizer}
    job = Job.model_validate({"name": "a", "storage": str(tmp_path / "runs"), "prepare": settings})
    report = prepare(job, session=here)
    loaded, facts = load(StoragePath(f"{report.output}/tokenizer"))
    assert report.tokens == 50 * (len(ids(loaded, "one two three")) + 1)
    assert report.manifest.eos_id == facts.eos_id
    assert f"Copied from `{path.as_uri()}`" in Path(report.output, "card.md").read_text()


def test_a_bad_tokenizer_is_found_before_the_documents_are_cleaned(tmp_path: Path) -> None:
    from raylm.config.job import Job
    from raylm.prep.prepare import prepare
    from raylm.prep.tasks import here

    (tmp_path / "b.txt").write_text("one two three\n" * 50)
    (tmp_path / "bad.model").write_bytes(b"none")
    source = {"document": "line", "glob": f"{tmp_path}/b.txt"}
    settings = {
        "sources": [source],
        "steps": ["exact_duplicates"],
        "tokenizer": {"path": str(tmp_path / "bad.model")},
    }
    job = Job.model_validate({"name": "a", "storage": str(tmp_path / "runs"), "prepare": settings})
    said: list[str] = []
    with pytest.raises(DataError, match=r"bad.model is no tokenizer"):
        prepare(job, session=here, progress=lambda progress: said.append(progress.phase))
    assert said == ["listing the sources", "copying the tokenizer"]
    good = job.prepare.tokenizer.model_copy(update={"path": None, "vocab_size": 300})
    other = job.model_copy(update={"prepare": job.prepare.model_copy(update={"tokenizer": good})})
    assert prepare(other, session=here).manifest.train_tokens > 0  # nothing is left that would be in the way

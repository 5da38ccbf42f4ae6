"""Trains a tokenizer on a sample of the documents' texts: the same bytes each time.

BPE is learned by the tokenizers library, whose result depends on nothing but the texts. Its unigram trainer adds
floating-point numbers in the order of a hash table that is seeded anew in each process: five runs over the same texts,
also with one thread, gave five different files. So unigram pieces are learned by the sentencepiece library in one
thread, from words in sorted order, and only written down in the tokenizers library's form.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from raylm.config.prepare.tokenizer import TokenizerSettings
from raylm.prep.extras import not_installed
from raylm.prep.tokenizer.folder import TokenizerFiles

END_OF_TEXT = "<|endoftext|>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_UNKNOWN = "<unk>"
_COVERED = 0.9995  # of the characters have tokens of their own, where the others are spelled in bytes
_UNIGRAM_LONGEST = 16
_SPACE = "\u2581"  # what sentencepiece writes for a space
_NOT_LEARNED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u2047\u2581]")  # sentencepiece has its own use for them

# Contractions, words, numbers, signs and white space, each with a space before it where it has one. Letters never
# share a piece with signs, so that no text is mistaken for a token such as <0x0A> or <|endoftext|>.
_NUMBERS = {"none": r" ?\p{N}+", "each": r"\p{N}", "up_to_three": r"\p{N}{1,3}"}
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+|{numbers}| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"


def train(texts: Iterable[str], settings: TokenizerSettings) -> TokenizerFiles:
    """A tokenizer trained on these texts, from which any text, once normalised, comes back unchanged."""
    special = special_tokens(settings)
    learn = {"bpe": _bpe, "unigram": _unigram}[settings.kind]
    tokenizer = learn(texts, settings, special)
    definition = bytes(tokenizer.to_str(pretty=False), "utf-8")
    if settings.kind == "bpe" and settings.alphabet == "byte_fallback":
        definition = _with_bytes(definition)
    return TokenizerFiles(definition, eos=special[0], bos=special[0])


def special_tokens(settings: TokenizerSettings) -> list[str]:
    """The end of text, then the others that were asked for."""
    return list(dict.fromkeys([settings.eos or END_OF_TEXT, *settings.special_tokens]))


def sample(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """The first texts that together hold `max_bytes`, the last one cut."""
    left = max_bytes
    for text in texts:
        if left <= 0:
            return
        yield text[:left]
        left -= len(text.encode())


def _bpe(texts: Iterable[str], settings: TokenizerSettings, special: list[str]) -> Any:
    from tokenizers import Tokenizer, models, trainers

    more: dict[str, Any] = {}
    size = settings.vocab_size
    if settings.alphabet == "byte_level":
        alphabet = _byte_alphabet()
    else:
        texts = list(texts)  # their characters are counted before the trainer reads them
        size -= len(BYTES)
        alphabet = _common_characters(
            Counter(character for text in texts for character in text), (size - len(special)) // 2
        )
        more["limit_alphabet"] = max(1, len(alphabet))
    if settings.max_token_length is not None:
        more["max_token_length"] = settings.max_token_length + 1  # the library means: shorter than that
    tokenizer = Tokenizer(models.BPE())
    _set_pipeline(tokenizer, settings)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=settings.min_frequency,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
        **more,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _with_bytes(definition: bytes) -> bytes:
    """The BPE definition with a token for each byte, which the trainer cannot be asked for."""
    content = json.loads(definition)
    vocabulary = content["model"]["vocab"]
    vocabulary |= {token: len(vocabulary) + byte for byte, token in enumerate(BYTES)}
    content["model"]["byte_fallback"] = True
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _unigram(texts: Iterable[str], settings: TokenizerSettings, special: list[str]) -> Any:
    from tokenizers import AddedToken, Tokenizer, models

    tokenizer = Tokenizer(models.Unigram())
    _set_pipeline(tokenizer, settings)
    words = _words(tokenizer, texts)
    max_pieces = settings.vocab_size - len(special)
    if settings.alphabet == "byte_level":
        alphabet = _byte_alphabet()
        pieces = _learned(words, max_pieces, alphabet, settings)
        tokenizer.model = models.Unigram(pieces)
    else:
        max_pieces -= len(BYTES) + 1
        characters: Counter[str] = Counter()
        for word, count in words.items():
            for character in word:
                characters[character] += count
        pieces = _learned(words, max_pieces, _common_characters(characters, max_pieces // 2), settings)
        first = [(_UNKNOWN, 0.0), *((token, 0.0) for token in BYTES)]
        tokenizer.model = models.Unigram([*first, *pieces], unk_id=0, byte_fallback=True)
    # They come after the pieces: the model would find one that is a piece in plain text.
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _words(tokenizer: Any, texts: Iterable[str]) -> Counter[str]:
    """What the model would get to see of these texts, and how often."""
    words: Counter[str] = Counter()
    for text in texts:
        if tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    return words


def _learned(
    words: Counter[str], max_pieces: int, alphabet: list[str], settings: TokenizerSettings
) -> list[tuple[str, float]]:
    """Pieces with the logarithm of their probability, `max_pieces` at most; every character of the alphabet is one."""
    seen: Counter[str] = Counter()
    known = re.compile(f"[{re.escape(''.join(alphabet))}]+") if alphabet else re.compile(r"(?!)")
    for word, count in words.items():
        if not _NOT_LEARNED.search(word):
            for part in known.findall(word):
                seen[part] += count
    seen_characters = {character for word in seen for character in word}
    missing = [character for character in alphabet if character not in seen_characters]
    pieces = _sentencepiece(seen, max_pieces - len(missing), settings) if seen else []
    least = min((score for _, score in pieces), default=0.0)
    return [*pieces, *((character, least - 1) for character in missing)]


def _sentencepiece(words: Counter[str], max_pieces: int, settings: TokenizerSettings) -> list[tuple[str, float]]:
    try:
        import sentencepiece
    except ImportError as error:
        raise not_installed("training a unigram tokenizer", error) from error

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"{word.replace(' ', _SPACE)}\t{count}" for word, count in sorted(words.items())]),
        input_format="tsv",
        model_writer=model,
        model_type="unigram",
        vocab_size=max_pieces + 1,  # with its own unknown piece
        hard_vocab_limit=False,
        num_threads=1,  # each thread sums for itself: their number would change the last digits
        character_coverage=1.0,
        max_sentencepiece_length=settings.max_token_length or _UNIGRAM_LONGEST,
        # The words are cut and normalised already.
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_by_whitespace=False,
        split_by_unicode_script=False,
        split_by_number=False,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    made = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    numbers = range(1, made.get_piece_size())
    return [(made.id_to_piece(number).replace(_SPACE, " "), made.get_score(number)) for number in numbers]


def _set_pipeline(tokenizer: Any, settings: TokenizerSettings) -> None:
    """Set the normalizer, pre-tokenizer and decoder around the tokenizer's model."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    if settings.normalization != "none":
        tokenizer.normalizer = {"nfc": normalizers.NFC, "nfkc": normalizers.NFKC}[settings.normalization]()
    words = pre_tokenizers.Split(Regex(_WORDS.format(numbers=_NUMBERS[settings.split_digits])), "isolated")
    if settings.alphabet == "byte_fallback":
        tokenizer.pre_tokenizer = words
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        return
    if settings.split_digits == "none":  # the library's own words are these
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()


def _byte_alphabet() -> list[str]:
    """The characters that stand for bytes where a tokenizer works on those."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _common_characters(characters: Counter[str], max_count: int) -> list[str]:
    """The characters that make up nearly all of the text, the most common first, equal ones in their own order."""
    enough = _COVERED * characters.total()
    chosen: list[str] = []
    covered = 0
    for character, count in sorted(characters.items(), key=lambda item: (-item[1], item[0])):
        if covered >= enough or len(chosen) >= max_count:
            break
        covered += count
        chosen.append(character)
    return chosen

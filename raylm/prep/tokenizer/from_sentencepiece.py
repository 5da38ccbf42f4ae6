"""A SentencePiece model becomes a tokenizer of the tokenizers library that gives the same ids.

One difference is left: where several cuts are equally likely to a unigram model, as in a long row of one sign, the
pieces are the same, but not always in the same order; SentencePiece adds up in 32 bits, the tokenizers library in 64.
"""

from __future__ import annotations

import re
from typing import Any

from raylm.errors import DataError
from raylm.prep.extras import not_installed
from raylm.prep.tokenizer.folder import TokenizerFiles, no_end_of_text

_SPACE = "\u2581"  # what stands for a space in pieces
_UNIGRAM, _BPE = 1, 2  # trainer_spec.model_type
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # pieces[].type
# The library looks for every piece of the vocabulary in a text, SentencePiece only for those of plain text. With a
# score below that of any way to spell the same characters, `<s>` in a text is three characters here too.
_NEVER = 10_000.0


def from_sentencepiece(content: bytes, url: str, eos: str | None) -> TokenizerFiles:
    """The tokenizer in this .model file; `eos` names its end of text where the model does not."""
    from tokenizers import AddedToken, Tokenizer

    model = _parsed(content, url)
    trainer = model.trainer_spec
    if trainer.treat_whitespace_as_suffix:
        raise DataError(
            f"{url} writes spaces behind words (treat_whitespace_as_suffix), which raylm does not read",
            hint="train it with spaces before words",
        )
    if trainer.model_type not in (_UNIGRAM, _BPE):
        raise DataError(
            f"{url} is a SentencePiece model of kind {trainer.model_type} (3 is word, 4 is char)",
            hint="use one of kind unigram or bpe",
        )
    tokenizer = Tokenizer(_unigram(model) if trainer.model_type == _UNIGRAM else _bpe(model))
    tokenizer.add_special_tokens(
        [
            AddedToken(piece.piece, special=True, normalized=False)
            for piece in model.pieces
            if piece.type in (_UNKNOWN, _CONTROL)
        ]
    )
    _set_pipeline(tokenizer, model)

    def piece(number: int) -> str | None:
        return model.pieces[number].piece if 0 <= number < len(model.pieces) else None

    end = eos or piece(trainer.eos_id)
    if end is None or tokenizer.token_to_id(end) is None:
        raise no_end_of_text(url, end, tokenizer)
    definition = bytes(tokenizer.to_str(pretty=False), "utf-8")
    return TokenizerFiles(definition, end, piece(trainer.bos_id), piece(trainer.pad_id), piece(trainer.unk_id))


def _parsed(content: bytes, url: str) -> Any:
    try:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    except ImportError as error:
        raise not_installed("reading a SentencePiece model", error) from error

    try:
        SentencePieceProcessor(model_proto=content)  # checks what the message's own reader does not
    except RuntimeError as error:
        raise _broken(url, len(content)) from error
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(content)
    if not model.pieces:  # an empty file is an empty message
        raise _broken(url, len(content))
    return model


def _broken(url: str, size: int) -> DataError:
    return DataError(
        f"{url} is no tokenizer: neither a whole SentencePiece model nor tiktoken ranks nor JSON ({size:,} bytes)",
        hint="set prepare.tokenizer.path to a whole file, or to a Hugging Face folder",
    )


def _unigram(model: Any) -> Any:
    from tokenizers import models

    least = min((piece.score for piece in model.pieces if piece.type == _NORMAL), default=0.0)
    hidden = least - _NEVER
    pieces = [
        (piece.piece, 0.0 if piece.type == _USER_DEFINED else piece.score if piece.type == _NORMAL else hidden)
        for piece in model.pieces
    ]
    trainer = model.trainer_spec
    return models.Unigram(pieces, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback)


def _bpe(model: Any) -> Any:
    """SentencePiece joins the two neighbours that make the piece of the best score, whichever two they are."""
    from tokenizers import models

    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL}
    vocabulary = {piece.piece: number for number, piece in enumerate(model.pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=lambda piece: (-scores[piece], vocabulary[piece]))
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return models.BPE(
        vocab=vocabulary,
        merges=merges,
        unk_token=model.pieces[model.trainer_spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
        ignore_merges=bool(_own_symbols(model)),  # nothing joins their characters, so they are found whole
    )


def _own_symbols(model: Any) -> list[str]:
    """The pieces that a text is cut at before anything else, the longest first."""
    symbols = [piece.piece.replace(" ", _SPACE) for piece in model.pieces if piece.type == _USER_DEFINED]
    return sorted(symbols, key=len, reverse=True)


def _set_pipeline(tokenizer: Any, model: Any) -> None:
    """Set the tokenizer's normalizer, and the decoder that undoes it, as the model has them."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    spec = model.normalizer_spec
    parts: list[Any] = []
    if spec.precompiled_charsmap:
        parts.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        parts += [
            normalizers.Replace(Regex(r"\A +"), ""),
            normalizers.Replace(Regex(r" +\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    space = _SPACE if spec.escape_whitespaces else " "
    if spec.add_dummy_prefix:
        parts.append(normalizers.Prepend(space))
    if spec.escape_whitespaces:
        parts.append(normalizers.Replace(" ", _SPACE))
    if parts:
        tokenizer.normalizer = normalizers.Sequence(parts)
    if symbols := _own_symbols(model):
        # As added tokens they would cut the text before it is normalised, and each part would take a space.
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, symbols))), "isolated")
    back: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix:
        back.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(back)

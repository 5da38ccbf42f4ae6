"""What counts as a word and as a sentence: the definitions that are one pattern, and where the others are.

Operators differ on purpose:

- `words_of` (blocklist for URLs, toxicity, fairness): what lists of phrases are compared with.
- `WORDS_AND_SIGNS` (classifier): punctuation tells good texts from bad, so signs are features as well.
- `LETTERS` (counterfactual): words of a language alone, in the text's own case, as their places are kept.
- spacy_words.py (quality): words and sentences as datatrove's filters count them, as their thresholds were set so.
- dedup/minhash.py (near_duplicates): runs of bytes that are no ASCII punctuation, one pass over raw bytes, for speed.
- decontaminate/ngrams.py: folds case, accents and numbers, so that a changed number does not hide a question.
- `str.split` (blocklist's shares, tokens per word in the report): what stands between white space.

Sentences: `SENTENCE_END` (fairness) splits them off; `SENTENCE_GAP` (decontaminate) is what lies between them, which is
put back, with full stops of Chinese and Japanese; quality's are spaCy's.
"""

from __future__ import annotations

import re

_LETTERS_AND_DIGITS = re.compile(r"[^\W_]+")
LETTERS = re.compile(r"[^\W\d_]+")
WORDS_AND_SIGNS = re.compile(r"\w+|[^\w\s]")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
# White space is looked at from its beginning only: at each of its characters, it would take squared time.
SENTENCE_GAP = re.compile(r"(?<![^\S\n])[^\S\n]*\n+|(?<=[.!?])[^\S\n]+|(?<=[。！？])[^\S\n]*")


def words_of(text: str) -> list[str]:
    """The text's runs of letters and digits, in lower case."""
    return _LETTERS_AND_DIGITS.findall(text.lower())

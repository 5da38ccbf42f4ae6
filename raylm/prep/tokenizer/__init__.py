"""Tokenizers: trained on the documents, or brought from what another library wrote.

Comes in: texts, or a folder or file of Hugging Face, SentencePiece or tiktoken. Leaves: a folder that transformers
loads without a network, and the few facts that shards need of it.
"""

from raylm.prep.tokenizer.folder import TokenizerFacts, load, partial_and_unknown, write_tokenizer
from raylm.prep.tokenizer.from_path import import_tokenizer
from raylm.prep.tokenizer.train import sample, train

__all__ = ["TokenizerFacts", "import_tokenizer", "load", "partial_and_unknown", "sample", "train", "write_tokenizer"]

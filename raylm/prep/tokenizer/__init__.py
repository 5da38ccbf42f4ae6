"""Tokenizers: trained on the documents, or imported from what Hugging Face, SentencePiece or tiktoken wrote.

The result is a folder that transformers loads without a network, and the few facts that shards need of it.
"""

from raylm.prep.tokenizer.folder import TokenizerFacts, load, partial_and_unknown, write_tokenizer
from raylm.prep.tokenizer.from_path import import_tokenizer
from raylm.prep.tokenizer.train import sample, train

__all__ = ["TokenizerFacts", "import_tokenizer", "load", "partial_and_unknown", "sample", "train", "write_tokenizer"]

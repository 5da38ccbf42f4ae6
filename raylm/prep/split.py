"""Which documents are held out: by the hash of their text, so that equal texts are on the same side."""

from __future__ import annotations

import hashlib

from raylm.records import Document

SPLIT_BY = "split_by"  # metadata of documents that stay together: the split hash of the text that decides for all


def split_hash(text: str) -> str:
    """64 bits of the text's hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def document_held_out(document: Document, share: float) -> bool:
    """Whether a document is kept for held-out loss; a changed copy goes where its original goes."""
    digest = str(document.meta.get(SPLIT_BY) or split_hash(document.text))
    return int(digest, 16) < share * 2**64

"""trafilatura over given pages, in an environment of its own; one line of JSON: a text a page, and CPU seconds."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Read the pages, print their texts."""
    from trafilatura import extract

    pages = json.loads(Path(sys.argv[1]).read_text())
    extract("<html><body><article><p>Warm up.</p></article></body></html>")
    began = time.process_time()
    texts = [
        extract(page) or "" for page in pages
    ]  # as its documentation calls it: comments and tables, no recall first
    print(json.dumps({"seconds": time.process_time() - began, "texts": texts}))


if __name__ == "__main__":
    main()

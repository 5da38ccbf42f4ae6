"""Books, as EPUB or text: chapters in reading order, without front matter."""

"""Source files → documents: one module per kind of source."""

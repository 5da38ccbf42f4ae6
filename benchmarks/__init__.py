"""Scripts that each answer one question about raylm, in figures."""

"""Personal data: rules and a model that find it, placeholders and pseudonyms in its place."""

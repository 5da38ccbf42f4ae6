"""The network: its shape, how it is built, its loss, and what it costs."""

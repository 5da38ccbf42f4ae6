"""Helpers for tests and benchmarks, of raylm itself and of operators, objectives and jobs of your own.

`datasets` makes small prepared data and jobs on them; `ranks` runs a function on several processes that form a gloo
group; `cluster` is a Ray cluster of several nodes on one machine, and `elastic` drives `raylm train` on it while nodes
are killed, drained and added; `servers` starts real object stores, and proxies that make them fail; `external` finds
datasets that do not come with raylm. The servers need what `pip install "raylm[dev]"` installs.
"""

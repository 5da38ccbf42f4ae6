"""Helpers for tests and benchmarks, of raylm itself and of operators, objectives and jobs of your own.

`datasets` makes small prepared data and jobs on them. `operators` runs an operator over a few texts. `elastic` runs a
job without Ray at several sizes, or by `raylm train` while nodes are killed, drained and added to a `cluster` of
several nodes on one machine; `processes` runs its bodies as plain processes around a hub, without Ray. `ranks` runs a
function on several processes that form a gloo group. `servers` starts real object stores, and proxies that make them
fail; `external` finds datasets that do not come with raylm.

The servers need what `pip install "raylm[dev]"` installs, and `external.needs_data` needs pytest.
"""

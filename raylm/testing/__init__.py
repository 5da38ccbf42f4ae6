"""Helpers for tests and benchmarks: ranks, object stores, clusters and small data sets on one machine.

`ranks` runs a function on several processes that form a gloo group; `servers` starts real object stores; `scenarios`
drives `raylm train` on a cluster of several nodes while nodes are killed, drained and added; `external` finds data sets
that do not come with raylm. The stores and the scenarios need what `pip install 'raylm[dev]'` installs.
"""

"""Kinds of sources: raw files become texts, one file per kind with its settings beside it.

A new kind is a `SourceKind`, registered by `raylm.register_source`. Its settings derive from `FileSourceSettings` (or
`TableSettings`) and its `read` yields a `Raw` for each text of a `Reading`.
"""

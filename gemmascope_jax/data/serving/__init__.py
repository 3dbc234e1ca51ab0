"""Servers: one reading of a store feeds many trainers (Gemma Scope 3.3.2).

`server` serves a store, or a slice of its shards, over Arrow Flight; `ready`
is the buffer of batches that all its trainers share; `client` is the stream
that a trainer reads, the same batches to the byte as those from the store
itself; `protocol` is what they say to each other and `access` who may.
"""

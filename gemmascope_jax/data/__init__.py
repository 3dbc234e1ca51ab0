"""Text -> tokens -> store -> batches.

In the order in which data flows: `text` reads, splits and mixes documents,
`tokens` makes windows of them, `stores` runs the model over those and keeps
its activations, `streams` gives training its batches, and `serving` gives
them to many trainers. `policy` says which positions count, everywhere, and
`lock` keeps two writers from one folder.
"""

import importlib

_PARTS = (
  "policy",
  "serving",
  "stores",
  "streams",
  "text",
  "tokens",
)


def __getattr__(name: str):
  if name in _PARTS:
    return importlib.import_module(f"{__name__}.{name}")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
  return [*globals(), *_PARTS]

"""Text -> tokens -> store -> batches.

In the order in which data flows: `texts` reads documents, `documents` splits
and mixes them, `packing` makes windows of tokens, `harvest` runs the model
over them into a `store`, and `stream` gives training its batches. `policy`
says which positions count, everywhere.
"""

import importlib

_PARTS = (
  "documents",
  "harvest",
  "packing",
  "policy",
  "store",
  "stream",
  "texts",
)


def __getattr__(name: str):
  if name in _PARTS:
    return importlib.import_module(f"{__name__}.{name}")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
  return [*globals(), *_PARTS]

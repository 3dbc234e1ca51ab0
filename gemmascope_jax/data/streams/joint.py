"""Several sites side by side, for transcoders and crosscoders.

Each row of a batch is one token: the activations of its sites, one after the
other. The parts read one store, one set of servers or one live model in one
order, so a batch has the bits of theirs.

Letters: B rows in a batch, D_k width of part k.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data.stores.store_plan import StoreMismatchError
from gemmascope_jax.data.streams.buffers import Buffers
from gemmascope_jax.data.streams.stream import WHOLE, ActivationStream

SEPARATOR = "+"  # of the sites in a name, as in "res.5+res.9"


class JointStream:
  """Batches float32 [B, D_1 + D_2 + ...] from streams of one site each.

  Memory: what the parts need, and the batches that are in use.

  Attributes:
    parts: the streams in the order of their columns, the target's last.
    sites: their sites.
    widths: D_k.
    means: float64 [D_k] each.
    mean_square_norms: of each part.
    site: the sites that are read, as in "res.5+res.9".
    target_site: the site that is to be reconstructed from them; None: they
      are.
    others: see `stream.ActivationStream`, of whole rows.
  """

  def __init__(
    self,
    streams: Sequence[ActivationStream],
    target: ActivationStream | None = None,
  ):
    """Describes the stream; reads nothing.

    Args:
      streams: of the sites that are read; one if there is a target.
      target: of the site that is to be reconstructed; None: those of
        `streams` are.

    Raises:
      StoreMismatchError: the streams' rows or their order differ.
      ValueError: fewer than two streams, a site twice, or a target of several
        sites.
    """
    self.parts = (*streams, *([] if target is None else [target]))
    self.sites = tuple(part.site for part in self.parts)
    if len(set(self.sites)) < max(len(self.sites), 2):
      raise ValueError(
        f"sites {', '.join(self.sites)}: expected at least two, each once"
      )
    if target is not None and len(streams) > 1:
      raise ValueError(
        f"target {target.site} of sites {', '.join(self.sites[:-1])}: expected"
        " one site that it is to be reconstructed from"
      )
    first = self.parts[0]
    for part in self.parts[1:]:
      differs = artifacts.differences(_rows(part), _rows(first))
      if differs:
        raise StoreMismatchError(
          f"the rows of {part.site} are not those of {first.site}:"
          f" {'; '.join(differs)}. Read both from one source, in one order"
        )
    self.site = SEPARATOR.join(stream.site for stream in streams)
    self.target_site = None if target is None else target.site
    self.widths = tuple(part.width for part in self.parts)
    self.width = sum(self.widths)
    self.means = tuple(part.mean for part in self.parts)
    self.mean = np.concatenate(self.means)
    self.mean_square_norms = tuple(p.mean_square_norm for p in self.parts)
    self.mean_square_norm = sum(self.mean_square_norms)
    self.batch_size, self.rows = first.batch_size, first.rows
    self.shuffle, self.policy = first.shuffle, first.policy
    self.model, self.provenance = first.model, first.provenance
    self.waits_for = first.waits_for
    self.fingerprint = artifacts.fingerprint(
      [[part.fingerprint for part in self.parts], self.target_site]
    )
    self._buffers = Buffers()

  def batch(self, step: int, part: slice = WHOLE) -> np.ndarray:
    """Batch number `step`, from 0: float32 [B, D_1 + ...]; see `StoreStream`."""
    return self._join([each.batch(step, part) for each in self.parts])

  def iterate(
    self, start: int = 0, stop: int | None = None, *, part: slice = WHOLE
  ) -> Iterator[tuple[int, np.ndarray]]:
    """(step, batch), read ahead by the parts' threads; see `StoreStream`."""
    sources = [each.iterate(start, stop, part=part) for each in self.parts]
    try:
      for found in zip(*sources, strict=True):
        yield found[0][0], self._join([rows for _, rows in found])
    finally:
      for source in sources:
        source.close()

  def _join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
    shape = (len(parts[0]), self.width)
    out = self._buffers.take(shape, np.dtype(np.float32))
    return np.concatenate(parts, axis=1, out=out)


def _rows(stream: ActivationStream) -> dict[str, Any]:
  """Which rows a stream gives, and when, as plain JSON."""
  values = {
    "rows": stream.rows,
    "batch_size": stream.batch_size,
    "shuffle": stream.shuffle.to_dict(),
    "token_policy": stream.policy.to_dict(),
    "data": stream.provenance,
  }
  return json.loads(artifacts.canonical_json(values))

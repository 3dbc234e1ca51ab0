"""Which tokens a latent fires on: its sum of activations by token id.

A sparse table of (latent, token) pairs that were seen, merged block by block.
It is exact while the pairs fit; when they do not, each latent keeps the tokens
with the greatest sums so far, and the table says that it was pruned.

Letters: M latents, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

from gemmascope_jax.studies.activity.entries import Entries
from gemmascope_jax.studies.activity.sample import Block

_LEAST_KEPT = 8  # tokens a latent keeps when the table is pruned, at least


class TokenSums:
  """Sums of activations by latent and token; see the module.

  Attributes:
    pruned: how often pairs were dropped to stay within the memory given; with
      0 everything is exact.
  """

  def __init__(self, width: int, vocabulary: int, pairs: int = 1 << 25):
    """Nothing seen yet.

    Args:
      width: M.
      vocabulary: V, above every token id.
      pairs: (latent, token) pairs to keep, 12 bytes each.
    """
    if pairs < 1:
      raise ValueError(f"pairs {pairs}: expected at least 1")
    self.pruned = 0
    self._shape, self._limit = (width, vocabulary), pairs
    self._table = scipy.sparse.csr_array(self._shape, dtype=np.float64)
    self._fresh = scipy.sparse.csr_array(self._shape, dtype=np.float64)
    self._occurrences = np.zeros(vocabulary, np.int64)

  def add(self, entries: Entries, block: Block) -> None:
    """Adds a block."""
    self._occurrences += np.bincount(block.tokens, minlength=self._shape[1])
    found = scipy.sparse.csr_array(
      (
        entries.values.astype(np.float64),
        block.tokens[entries.rows].astype(np.int32),
        entries.starts.copy(),  # changed in place by what follows
      ),
      shape=self._shape,
    )
    found.sum_duplicates()
    self._fresh = self._fresh + found
    # Merged seldom: a merge copies the whole table.
    if self._fresh.nnz > max(self._table.nnz, 1 << 20):
      self._merge()

  def _merge(self) -> None:
    self._table = self._table + self._fresh
    self._fresh = scipy.sparse.csr_array(self._shape, dtype=np.float64)
    if self._table.nnz > self._limit:
      self._prune()

  def _prune(self) -> None:
    """Each latent keeps its greatest sums, half of the limit in all."""
    table, self.pruned = self._table, self.pruned + 1
    lengths = np.diff(table.indptr)
    kept = max(self._limit // (2 * max((lengths > 0).sum(), 1)), _LEAST_KEPT)
    latents = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((-table.data, latents))
    rank = np.arange(table.nnz) - table.indptr[latents]
    keep = np.sort(order[rank < kept])
    starts = np.concatenate([[0], np.cumsum(np.minimum(lengths, kept))])
    self._table = scipy.sparse.csr_array(
      (table.data[keep], table.indices[keep], starts.astype(np.int32)),
      shape=self._shape,
    )

  def top(
    self, latent: int, count: int, least: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The tokens on which a latent is strongest on average.

    Args:
      latent: which.
      count: how many tokens, at most.
      least: occurrences that a token needs, so that no mean is of one or two.

    Returns:
      ids int64 [n] and means float64 [n], greatest first: the activation
      averaged over all occurrences of the token, those with 0 included.
    """
    if self._fresh.nnz:
      self._merge()
    own = slice(*self._table.indptr[latent : latent + 2])
    ids, sums = self._table.indices[own], self._table.data[own]
    enough = self._occurrences[ids] >= least
    ids, sums = ids[enough].astype(np.int64), sums[enough]
    means = sums / self._occurrences[ids]
    order = np.lexsort((ids, -means))[:count]
    return ids[order], means[order]

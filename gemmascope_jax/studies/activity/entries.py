"""The active latents of a block of rows, and nothing else.

The encoder's product is dense, a few million numbers at a time; what is kept
of it are the active entries, ordered by latent, then row, so that everything
that is added up by latent is a sum over runs of neighbours.

Letters: B rows of the block, D width of the site, M latents, n active entries.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from gemmascope_jax.sae.sae import SAE, SAEConfig

# Numbers of a dense code at one time, and the rows that this may mean.
_DENSE = 1 << 23
_LEAST_ROWS, _MOST_ROWS = 64, 2_048


class Entries(NamedTuple):
  """Active entries of a code [B, M].

  Attributes:
    latents: int32 [n], increasing.
    rows: int32 [n], in the block; increasing within a latent.
    values: float32 [n], positive.
    starts: int32 [M + 1], where each latent's entries begin.
    present: int64 [P], latents that have any.
  """

  latents: np.ndarray
  rows: np.ndarray
  values: np.ndarray
  starts: np.ndarray
  present: np.ndarray

  @property
  def width(self) -> int:
    """M."""
    return len(self.starts) - 1

  def by_latent(self, rows: int, values=None) -> scipy.sparse.csr_array:
    """Sparse [M, B], with other values if they are given."""
    values = self.values if values is None else values
    return scipy.sparse.csr_array(
      (values, self.rows, self.starts), shape=(self.width, rows)
    )

  def runs(self, labels: np.ndarray) -> Runs:
    """Joins neighbours of one latent and one label.

    Args:
      labels: [B], of rows, such as their windows; increasing.
    """
    own = labels[self.rows]
    changes = (self.latents[1:] != self.latents[:-1]) | (own[1:] != own[:-1])
    firsts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    firsts = firsts[: len(self.latents)].astype(np.int64)
    lengths = np.diff(np.append(firsts, len(self.latents)))
    return Runs(self.latents[firsts], own[firsts], firsts, lengths)


class Runs(NamedTuple):
  """Entries of one latent and one label, joined; see `Entries.runs`.

  Attributes:
    latents: int32 [r].
    labels: [r].
    firsts: int64 [r], where each begins among the entries.
    lengths: int64 [r].
  """

  latents: np.ndarray
  labels: np.ndarray
  firsts: np.ndarray
  lengths: np.ndarray


def on_device(sae: SAE) -> SAE:
  """The SAE as `active` wants it: device arrays, and no provenance.

  The provenance is static, so without it all SAEs of one shape share one
  compiled encoder.
  """
  return jax.tree.map(
    jnp.asarray, sae.replace(config=SAEConfig(k=sae.config.k))
  )


def active(sae: SAE, x: np.ndarray) -> Entries:
  """Encodes a block.

  Args:
    sae: of `on_device`; any SAE works, but compiles anew.
    x: float32 [B, D].

  Returns:
    The active entries.
  """
  size = min(max(_DENSE // sae.width, _LEAST_ROWS), _MOST_ROWS)
  rows, latents, values = [], [], []
  for start in range(0, len(x), size):
    part = x[start : start + size]
    padded = np.zeros((size, x.shape[1]), np.float32)
    padded[: len(part)] = part
    where, found = _nonzero(_encode(sae, jnp.asarray(padded)), len(part))
    rows.append(where // sae.width + start)
    latents.append((where % sae.width).astype(np.int32))
    values.append(found)
  per_row = np.bincount(np.concatenate(rows), minlength=len(x))
  code = scipy.sparse.csr_array(
    (
      np.concatenate(values),
      np.concatenate(latents),
      np.concatenate([[0], np.cumsum(per_row)]).astype(np.int32),
    ),
    shape=(len(x), sae.width),
  ).tocsc()
  counts = np.diff(code.indptr)
  return Entries(
    latents=np.repeat(np.arange(sae.width, dtype=np.int32), counts),
    rows=code.indices,
    values=code.data,
    starts=code.indptr,
    present=np.flatnonzero(counts),
  )


@jax.jit
def _encode(sae, x):
  return sae.encode(x)


def _nonzero(code: jax.Array, rows: int) -> tuple[np.ndarray, np.ndarray]:
  """Where the first rows are positive, counted through, and what they are."""
  if jax.default_backend() == "cpu":
    flat = np.asarray(code)[:rows].reshape(-1)
    where = np.flatnonzero(flat > 0)
    return where, flat[where]
  # Found on the device: the code itself is too much to bring over. Sizes are
  # powers of two so that few are compiled.
  flat, count = _count(code, rows)
  count = int(count)
  size = 1 << max(count - 1, 1).bit_length()
  where, found = _take(flat, size)
  return np.asarray(where)[:count].astype(np.int64), np.asarray(found)[:count]


@jax.jit
def _count(code, rows):
  own = jnp.arange(code.shape[0])[:, None] < rows
  flat = jnp.where(own, code, 0).reshape(-1)
  return flat, (flat > 0).sum()


@functools.partial(jax.jit, static_argnums=1)
def _take(flat, size):
  (where,) = jnp.nonzero(flat > 0, size=size, fill_value=0)
  return where, flat[where]

"""Windows of tokens -> rows: the language model's part of a store.

The harvest writes these rows down; the live stream trains on them at once.
Either way row r is the same: kept positions (the token policy's) counted
through the windows, up to the plan's row budget. If batches start at multiples
of the plan's `batch`, they are the same bytes.

Shapes are static and there is one compilation: the last batch is filled up
with a window whose rows are dropped.

Letters: N windows, T tokens in a window, D width of a site, n rows.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemmascope_jax import gemma
from gemmascope_jax.data.policy import count_kept
from gemmascope_jax.data.stores import shards
from gemmascope_jax.data.stores.store_plan import StorePlan
from gemmascope_jax.gemma import on_mesh
from gemmascope_jax.parallel.mesh import DATA

_WINDOWS_AT_ONCE = 4096  # looked at on the host, so that memory is bounded


class Forward:
  """The rows of windows under a plan, a batch of windows at a time.

  Attributes:
    row_starts: int64 [N + 1]: rows before each window, and in all; never above
      the plan's row budget.
  """

  def __init__(
    self,
    lm: Any,
    plan: StorePlan,
    tokens: np.ndarray,
    mesh: Mesh | None = None,
  ):
    """Counts the rows; computes nothing.

    Args:
      lm: with `config` and `params`; the parameters of layers that are not
        needed may be missing.
      plan: sites, policy, batch, row budget and dtype.
      tokens: int32 [N, T], the plan's windows; may be memory-mapped.
      mesh: devices over whose "data" axis the windows of a batch are split,
        as the parameters are laid out; None: the default device.

    Raises:
      ValueError: the tokens are not the plan's, or a batch can't be split.
    """
    if tokens.shape != (plan.windows, plan.window):
      raise ValueError(
        f"tokens {list(tokens.shape)}: the plan is of {plan.windows} windows of"
        f" {plan.window} tokens"
      )
    self._mesh, self._sharding = mesh, None
    if mesh is not None:
      ways = dict(mesh.shape).get(DATA, 1)
      if plan.batch % ways:
        raise ValueError(
          f"batch {plan.batch}: the mesh splits it {ways} ways (its axis"
          f" {DATA!r}); use a multiple of {ways}"
        )
      self._sharding = by_sequence(mesh)
    self._lm, self._plan, self._tokens = lm, plan, tokens
    self.row_starts = np.minimum(row_starts(plan.policy, tokens), plan.rows)
    # A mask costs time; whether there is one is decided for all windows, so
    # that there is one compilation.
    self._padded = any(
      (tokens[i : i + _WINDOWS_AT_ONCE] == plan.policy.pad_id).any()
      for i in range(0, len(tokens), _WINDOWS_AT_ONCE)
    )

  def dispatch(self, first: int) -> dict[str, jax.Array]:
    """Starts one batch, windows first..first+batch-1, and does not wait.

    Returns:
      {site: [batch, T, D]} of the plan's dtype, on the device.
    """
    block = np.asarray(self._tokens[first : first + self._plan.batch])
    filler = np.repeat(block[:1], self._plan.batch - len(block), axis=0)
    block = np.concatenate([block, filler])
    mask = block != self._plan.policy.pad_id if self._padded else None
    return taps(
      self._lm.params,
      self._put(block),
      None if mask is None else self._put(mask),
      config=self._lm.config,
      sites=tuple(site for site, _ in self._plan.sites),
      dtype=self._plan.dtype,
      mesh=self._mesh,
    )

  def collect(
    self, first: int, acts: dict[str, jax.Array], site: str
  ) -> np.ndarray:
    """Waits for a batch and picks its rows, checked to be finite.

    Args:
      first: as given to `dispatch`.
      acts: what that returned.
      site: one of the plan's sites.

    Returns:
      [n, D] in stored form: rows row_starts[first] and on.

    Raises:
      FloatingPointError: there is a NaN or an infinity; says where.
    """
    stop = min(first + self._plan.batch, self._plan.windows)
    kept = np.argwhere(self._plan.policy.keep(self._tokens[first:stop]))
    kept = kept[: self.row_starts[stop] - self.row_starts[first]]
    rows = np.asarray(acts[site])[kept[:, 0], kept[:, 1]]
    good = np.isfinite(rows).all(axis=1)
    if not good.all():
      # Attention spreads a NaN over its window, so a position says nothing.
      window = first + kept[int(np.argmin(good)), 0]
      raise FloatingPointError(
        f"{self._plan.model} gave a NaN or an infinity at site {site} in window"
        f" {window} (row {window} of tokens.npy): check the weights; if they"
        " are right, compute in float32"
      )
    return shards.encode(rows, self._plan.dtype)

  def _put(self, array: np.ndarray) -> jax.Array:
    if self._sharding is None:
      return jnp.asarray(array)
    return jax.device_put(array, self._sharding)


def row_starts(policy: Any, tokens: np.ndarray) -> np.ndarray:
  """Rows before each window, and in all: int64 [N + 1]; no budget applied.

  Args:
    policy: which positions become rows.
    tokens: int32 [N, T]; memory-mapped ones are read bit by bit.
  """
  starts = np.zeros(len(tokens) + 1, np.int64)
  for first in range(0, len(tokens), _WINDOWS_AT_ONCE):
    some = np.asarray(tokens[first : first + _WINDOWS_AT_ONCE])
    starts[first + 1 : first + 1 + len(some)] = count_kept(policy, some)
  return np.cumsum(starts, out=starts)


@functools.partial(
  jax.jit, static_argnames=("config", "sites", "dtype", "mesh")
)
def taps(
  params: gemma.model.Params,
  tokens: jax.Array,
  mask: jax.Array | None,
  *,
  config: gemma.GemmaConfig,
  sites: tuple[str, ...],
  dtype: str,
  mesh: Mesh | None = None,
) -> dict[str, jax.Array]:
  """The activations of sites, up to whose last layer the model runs.

  Args:
    params: of the model, whole or in parts on the mesh.
    tokens: int32 [batch, T].
    mask: bool [batch, T], True for real tokens; None: all are.
    config: of the model.
    sites: their names.
    dtype: of the result.
    mesh: devices, over whose "data" axis sequences are split, and the result
      unless some are of other processes.

  Returns:
    {site: [batch, T, D]}.
  """
  if mesh is not None:
    params = on_mesh.Params(params, mesh)
  out = gemma.forward(
    config,
    params,
    tokens,
    taps=sites,
    num_layers=gemma.sites.layers_needed(config, sites),
    mask=mask,
    logits=False,
  )
  acts = {site: out.acts[site].astype(dtype) for site in sites}
  if mesh is None:
    return acts
  split = by_sequence(mesh)
  if mesh.is_multi_process:  # every process gets all rows
    split = NamedSharding(mesh, PartitionSpec())
  return jax.lax.with_sharding_constraint(acts, split)


def by_sequence(mesh: Mesh) -> NamedSharding:
  """The first axis over the mesh's "data" axis, if it has one."""
  return NamedSharding(
    mesh, PartitionSpec(DATA if DATA in mesh.shape else None)
  )

"""Edits that steer: pure functions of one site's activation x.

With f_i(x) the value of latent i and d_i its decoder row,

  add        x + s u d_i               s the strength, u what strength 1 is
  clamp      x + sum_i (v_i - f_i(x)) d_i
  ablate     clamp to 0
  direction  x + s v                   v any vector

Clamping moves x by the difference that it makes to the reconstruction alone,
so what the SAE does not explain (the error term, x - x_hat) stays as it is.

Each edit is a `jax.tree_util.Partial` of a function of this module: a pytree
whose leaves are all of its numbers. So edits of the same kind, of whatever
latent and strength, run in the same compiled program.

Letters: S sequences, T tokens, D width of the site, M latents, K latents that
are edited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax.sae.sae import SAE, Params, SAEConfig

Array = jax.Array
Edit = Callable[[Array], Array]
Numbers = float | Sequence[float] | np.ndarray

# A push is refused beyond this: float32 would keep nothing of the activation
# beside it, and a few layers later its square has no number.
LARGEST = 1e12


def site_of(sae: SAE) -> str:
  """The site at which edits of an SAE's latents are made: where it writes.

  Raises:
    ValueError: it does not say, or it is a crosscoder.
  """
  _refuse_crosscoder(sae)
  site = sae.config.target_site or sae.config.site
  if site is None:
    raise ValueError(
      "this SAE does not say at which site it was trained: expected"
      " sae.config.site, as 'res.12'; name the site in edits={...} yourself"
    )
  return site


def add(
  sae: SAE, latent: int, strength: float, *, unit: float = 1.0
) -> jax.tree_util.Partial:
  """x + strength unit d_i: the latent's direction, whatever x is.

  Args:
    sae: an SAE, or a transcoder: then an edit of the site that it writes.
    latent: which, 0 to M - 1.
    strength: negative to push away.
    unit: the activation that strength 1 stands for: 1, or the latent's typical
      maximum (see `activations.typical_maxima`).

  Returns:
    The edit.

  Raises:
    ValueError: no such latent, a number that is not finite or too large, or a
      crosscoder.
  """
  _refuse_crosscoder(sae)
  (latent,) = _indices(sae, latent)
  size = _number("strength", strength) * _number("unit", unit)
  return direction(np.asarray(sae.params.w_dec)[latent], size)


def direction(vector: np.ndarray, strength: float) -> jax.tree_util.Partial:
  """x + strength vector.

  Args:
    vector: [D], of the site's width; not normalised here.
    strength: how many of it.

  Returns:
    The edit.

  Raises:
    ValueError: not a vector, or a number that is not finite or too large.
  """
  vector = np.asarray(vector, np.float32)
  if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
    raise ValueError(
      f"a direction of shape {vector.shape}: expected one vector [D] of finite"
      " numbers"
    )
  strength = _number("strength", strength)
  _require_moderate(abs(strength) * float(np.abs(vector).max()))
  return jax.tree_util.Partial(
    _shifted, jnp.asarray(vector), jnp.float32(strength)
  )


def clamp(
  sae: SAE,
  latents: int | Sequence[int],
  values: Numbers,
  *,
  unit: Numbers = 1.0,
  only_where_active: bool = False,
) -> jax.tree_util.Partial:
  """x + sum_i (values_i unit_i - f_i(x)) d_i: sets latents to values.

  Args:
    sae: an SAE; not a transcoder, see below.
    latents: which, one or K.
    values: what they are set to, one for all or K.
    unit: what value 1 stands for, one for all or K; see `add`.
    only_where_active: leave tokens alone at which a latent is 0.

  Returns:
    The edit.

  Raises:
    ValueError: no such latent, a number that is not finite or too large, or a
      count that does not match, a crosscoder, or a transcoder, whose latents are read at
      another site than the one it writes.
  """
  _refuse_crosscoder(sae)
  if sae.config.target_site not in (None, sae.config.site):
    raise ValueError(
      f"a transcoder from {sae.config.site} to {sae.config.target_site}: its"
      " latents can't be clamped or ablated, since an edit of"
      f" {sae.config.target_site} does not see {sae.config.site}; steering.add"
      " works"
    )
  chosen = _indices(sae, latents)
  targets = _each("values", values, len(chosen)) * _each(
    "unit", unit, len(chosen)
  )
  _require_moderate(float(np.abs(targets).max()))
  return jax.tree_util.Partial(
    _clamped,
    *reader(sae, chosen),
    jnp.asarray(np.asarray(sae.params.w_dec)[chosen]),
    jnp.asarray(targets, jnp.float32),
    jnp.bool_(only_where_active),
  )


def ablate(sae: SAE, latents: int | Sequence[int]) -> jax.tree_util.Partial:
  """x - sum_i f_i(x) d_i: the latents do not fire; see `clamp`."""
  return clamp(sae, latents, 0.0)


def together(*edits: Edit) -> jax.tree_util.Partial:
  """One edit after the other, at the same site; each sees what came before.

  Raises:
    ValueError: none given.
  """
  if not edits:
    raise ValueError("together() of no edits: expected at least one")
  return jax.tree_util.Partial(_one_after_another, *map(as_partial, edits))


def at(edit: Edit, positions: np.ndarray | Array) -> jax.tree_util.Partial:
  """The edit at some positions only, for `forward`.

  Args:
    edit: any.
    positions: bool [S, T], such as `policy.keep(tokens)`: never BOS.

  Raises:
    ValueError: positions that are not bool [S, T].
  """
  positions = jnp.asarray(positions)
  if positions.ndim != 2 or positions.dtype != jnp.bool_:
    raise ValueError(
      f"positions of shape {positions.shape} and dtype {positions.dtype}:"
      " expected bool [sequences, tokens]"
    )
  return jax.tree_util.Partial(_only_at, as_partial(edit), positions)


def reader(sae: SAE, latents: int | Sequence[int]) -> tuple[SAE, Array]:
  """An SAE that encodes a few latents, and where they are in it.

  It is no larger than it has to be: each latent is a column of its own, but
  which are among a row's k largest only all of them together say.

  Args:
    sae: an SAE or a transcoder, of M latents.
    latents: which, one or K.

  Returns:
    The SAE, of K or M latents, and int32 [K].

  Raises:
    ValueError: no such latent.
  """
  chosen = _indices(sae, latents)
  params = sae.params
  # Without its provenance, which is static: all of one shape compile once.
  config = SAEConfig(k=sae.config.k, site=sae.config.site)
  if sae.config.k is not None:
    whole = params.replace(w_skip=None)
    whole = SAE(jax.tree.map(jnp.asarray, whole), config)
    return whole, jnp.asarray(chosen, jnp.int32)
  some = Params(
    w_enc=np.asarray(params.w_enc)[:, chosen],
    b_enc=np.asarray(params.b_enc)[chosen],
    w_dec=np.asarray(params.w_dec)[chosen],
    b_dec=params.b_dec,
    threshold=np.asarray(params.threshold)[chosen],
  )
  some = SAE(jax.tree.map(jnp.asarray, some), config)
  return some, jnp.arange(len(chosen), dtype=jnp.int32)


def as_partial(edit: Edit) -> jax.tree_util.Partial:
  """An edit as a pytree; one of this module's is one already."""
  if isinstance(edit, jax.tree_util.Partial):
    return edit
  return jax.tree_util.Partial(edit)


def _shifted(vector, strength, x):
  if x.shape[-1] != vector.shape[0]:
    raise ValueError(
      f"a direction of width {vector.shape[0]} for activations of width"
      f" {x.shape[-1]}: it belongs to another site or model"
    )
  return x.astype(jnp.float32) + (strength * vector)[None, None]


def _clamped(reader, chosen, directions, targets, only_where_active, x):
  latents = jnp.take(reader.encode(x), chosen, axis=-1)
  change = targets[None, None] - latents
  change = jnp.where(only_where_active & (latents == 0), 0, change)
  moved = jnp.matmul(change, directions, precision="highest")
  return x.astype(jnp.float32) + moved


def _one_after_another(*edits_and_x):
  *edits, x = edits_and_x
  for edit in edits:
    x = edit(x)
  return x


def _only_at(edit, positions, x):
  if positions.shape != x.shape[:2]:
    raise ValueError(
      f"an edit at positions of shape {positions.shape} for activations of"
      f" shape {x.shape}: expected those of the same tokens"
    )
  return jnp.where(positions[:, :, None], edit(x), x)


def _refuse_crosscoder(sae: SAE) -> None:
  if sae.config.parts:
    raise ValueError(
      f"a crosscoder of {sae.config.site}: its latents write at several sites"
      " at once; steer with the part of its decoder row that belongs to one"
      " (sae.config.columns), by steering.direction"
    )


def _indices(sae: SAE, latents: int | Iterable[int]) -> np.ndarray:
  """int [K], checked."""
  chosen = np.atleast_1d(np.asarray(latents))
  if chosen.ndim != 1 or not chosen.size or chosen.dtype.kind not in "iu":
    raise ValueError(f"latents {latents!r}: expected a number, or several")
  wrong = chosen[(chosen < 0) | (chosen >= sae.width)]
  if wrong.size:
    raise ValueError(
      f"latent {wrong[0]}: this SAE has latents 0..{sae.width - 1}"
    )
  if len(set(chosen.tolist())) < len(chosen):
    raise ValueError(f"latents {chosen.tolist()}: expected each once")
  return chosen


def _number(name: str, value: float) -> float:
  number = np.asarray(value)
  if number.ndim or number.dtype.kind not in "iuf" or not np.isfinite(number):
    raise ValueError(f"{name} is {value!r}; expected a finite number")
  return float(number)


def _require_moderate(size: float) -> None:
  if size > LARGEST:
    raise ValueError(
      f"a push of {size:.3g} in a single coordinate or latent: expected at most"
      f" {LARGEST:.0e}; float32 keeps nothing of the activation beside it. Give"
      " a smaller strength or unit"
    )


def _each(name: str, values: Numbers, count: int) -> np.ndarray:
  """float64 [count] from one number or as many."""
  numbers = np.asarray(values)
  if numbers.dtype.kind not in "iuf":
    raise ValueError(f"{name} is {values!r}; expected finite numbers")
  numbers = numbers.astype(np.float64)
  if numbers.ndim > 1 or (numbers.ndim and len(numbers) != count):
    raise ValueError(
      f"{name} of shape {numbers.shape} for {count} latents: expected one"
      " number, or one for each"
    )
  if not np.isfinite(numbers).all():
    raise ValueError(f"{name} is {values!r}; expected finite numbers")
  return np.broadcast_to(numbers, count)

"""The plain rival of a latent: the mean difference of two sets of texts.

  v = m(positive) - m(negative),   m = sum_s sum_t x_st / sum_s n_s

over the tokens that count of all texts s. Texts are the sampling unit, so the
standard error of each coordinate of m is that of a ratio (see `estimate`),

  se^2 = n / (n - 1) sum_s (sum_t x_st - n_s m)^2 / (sum_s n_s)^2,

and the two sets' add in squares. All sums are float64, of x less a shift that
is near the mean, which cancels in v and keeps digits: at Gemma's residual
sites a few coordinates are thousands of times as large as the difference.

Letters: S texts, T tokens, D width of the site.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax import gemma
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.gemma import sites
from gemmascope_jax.studies import splice


@dataclasses.dataclass(frozen=True, eq=False)
class MeanDifference:
  """A steering vector and how sure it is.

  Attributes:
    site: where it belongs.
    vector: float64 [D], positive less negative.
    stderr: float64 [D], one standard error over texts of each coordinate.
    positive: texts of the one set that have a token that counts.
    negative: of the other.
    tokens: (positive, negative) tokens that count.
  """

  site: str
  vector: np.ndarray
  stderr: np.ndarray
  positive: int
  negative: int
  tokens: tuple[int, int]

  @property
  def norm(self) -> float:
    """||v||."""
    return float(np.linalg.norm(self.vector))

  @property
  def noise(self) -> float:
    """The norm that chance alone would give v: sqrt of the summed se^2."""
    return float(np.linalg.norm(self.stderr))


def mean_difference(
  lm,
  site: str,
  positive: np.ndarray,
  negative: np.ndarray,
  policy: TokenPolicy,
  *,
  batch: int = 8,
) -> MeanDifference:
  """The mean activation on some texts less that on others.

  Args:
    lm: a `Gemma` with the layers up to the site.
    site: where, such as "res.12".
    positive: int [S, T], texts that have what is steered towards, BOS first;
      see `generation.encode`.
    negative: int [S', T'], texts that lack it, otherwise alike.
    policy: which positions count.
    batch: texts a pass.

  Returns:
    See `MeanDifference`.

  Raises:
    ValueError: fewer than two texts of a set have a token that counts (says
      which set), or a site that the model lacks.
  """
  site = str(sites.check(lm.config, site))
  shift, sums = None, {}
  for name, tokens in (("positive", positive), ("negative", negative)):
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
      raise ValueError(
        f"{name} texts of shape {tokens.shape} and dtype {tokens.dtype}:"
        " expected token ids [texts, tokens]"
      )
    counts = policy.keep(tokens).sum(axis=1)
    if (counts > 0).sum() < 2:
      raise ValueError(
        f"{(counts > 0).sum()} {name} texts have a token that counts: expected"
        " at least 2, to know how sure the difference is"
      )
    totals = []
    for part in splice.batches(lm.params, tokens, batch, policy.pad_id):
      x = _activations(lm.config, site, lm.params, part, policy.pad_id)
      x, keep = np.asarray(x, np.float64), policy.keep(part)
      if shift is None and keep.any():
        shift = x[keep].mean(axis=0)
      moved = x if shift is None else x - shift[None, None]
      totals.append(np.where(keep[..., None], moved, 0).sum(axis=1))
    sums[name] = np.concatenate(totals)[: len(tokens)], counts
  means, errors = zip(*(_mean(*each) for each in sums.values()), strict=True)
  return MeanDifference(
    site=site,
    vector=means[0] - means[1],
    stderr=np.sqrt(errors[0] + errors[1]),
    positive=int((sums["positive"][1] > 0).sum()),
    negative=int((sums["negative"][1] > 0).sum()),
    tokens=(int(sums["positive"][1].sum()), int(sums["negative"][1].sum())),
  )


def _mean(totals: np.ndarray, counts: np.ndarray):
  """The mean [D] of tokens, and its squared standard error over texts."""
  counted = counts > 0
  totals, counts = totals[counted], counts[counted].astype(np.float64)
  n, every = len(counts), counts.sum()
  mean = totals.sum(axis=0) / every
  residual = totals - counts[:, None] * mean[None]
  return mean, n / (n - 1) * np.square(residual).sum(axis=0) / every**2


@functools.partial(jax.jit, static_argnums=(0, 1))
def _activations(config, site, params, tokens, pad_id):
  out = gemma.forward(
    config,
    params,
    tokens,
    taps=(site,),
    mask=tokens != pad_id,
    num_layers=sites.parse(site).layer + 1,
  )
  return out.acts[site].astype(jnp.float32)

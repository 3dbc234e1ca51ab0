"""Two sets of texts from one latent: where it fires, and where it does not.

Whoever has texts of their own for a concept has a better contrast. These sets
know of the concept only what the latent knows, so that a mean difference of
them asks: is the SAE's direction better than the plain one of the same tokens?

Letters: S sequences, T tokens, W tokens of a window, N windows of a set.
"""

from __future__ import annotations

import numpy as np

from gemmascope_jax.data.policy import TokenPolicy


def contrast(
  tokens: np.ndarray,
  values: np.ndarray,
  policy: TokenPolicy,
  *,
  bos_id: int,
  texts: int = 256,
  window: int = 16,
  seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
  """Windows in which a latent is strongest, and windows in which it is 0.

  Args:
    tokens: int [S, T], text that the latent was read on.
    values: float [S, T], what it was there (`activations.values`, of one).
    policy: a window counts if it keeps all of its tokens.
    bos_id: put before each window.
    texts: N, of each set at most.
    window: W, tokens of text in each.
    seed: of the choice among the windows without it.

  Returns:
    (positive, negative): int32 [N, 1 + W] each; the positive ones descending
    by their strongest activation.

  Raises:
    ValueError: fewer than two windows of either kind, or shapes or numbers that
      don't fit.
  """
  tokens, values = np.asarray(tokens), np.asarray(values)
  if tokens.ndim != 2 or values.shape != tokens.shape:
    raise ValueError(
      f"values of shape {values.shape} for tokens of shape {tokens.shape}:"
      " expected a latent's activation at each of [sequences, tokens]"
    )
  if texts < 2 or not 1 <= window < tokens.shape[1]:
    raise ValueError(
      f"{texts} texts of {window} tokens: expected at least 2, of 1 to"
      f" {tokens.shape[1] - 1} tokens"
    )
  # After BOS, so that the first window is not lost to it.
  count = (tokens.shape[1] - 1) // window
  cut = lambda x: x[:, 1 : 1 + count * window].reshape(-1, window)
  text, peaks = cut(tokens), cut(values).max(axis=1)
  whole = cut(policy.keep(tokens)).all(axis=1)
  fires = np.flatnonzero(whole & (peaks > 0))
  silent = np.flatnonzero(whole & (peaks == 0))
  for name, found in (("fires", fires), ("does not fire", silent)):
    if len(found) < 2:
      raise ValueError(
        f"{len(found)} windows of {window} tokens in which the latent {name},"
        f" of {whole.sum()}: expected at least 2 for a contrast; give more"
        " text, another window, or texts of your own"
      )
  fires = fires[np.argsort(-peaks[fires], kind="stable")][:texts]
  silent = np.random.default_rng(seed).permutation(silent)[:texts]
  first = lambda n: np.full((n, 1), bos_id, np.int32)
  return tuple(
    np.concatenate([first(len(each)), text[each].astype(np.int32)], axis=1)
    for each in (fires, silent)
  )

"""Attribution of latents to the logit of the correct next token.

  y = f(x) * (W_dec grad_x L),  L the target's logit less the mean logit

(Gemma Scope C.3, eq. 12), and how evenly it is spread over the latents.

Letters: S sequences, T tokens, D width of the site, M latents.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax import gemma
from gemmascope_jax.gemma import sites

# Per-sequence sums of one SAE, float64 [S] each: counted tokens; of these
# without an active latent, and with active latents but no attribution; active
# latents; and over the others, their number, r_L0 and exp(S(p)).
SUMS = ("count", "silent", "flat", "active", "measured", "r", "effective")


def batch_sums(
  lm, site, saes, tokens, policy, target="own", at="x", softcap=True
) -> dict[str, np.ndarray]:
  """Per-sequence sums of one batch.

  Args:
    lm: a `Gemma`.
    site: of all the SAEs.
    saes: by name.
    tokens: int32 [S, T].
    policy: which tokens count.
    target: "own" or "all", see `gradient`.
    at: "x": gradients at the activation; "x_hat": at each reconstruction,
      spliced in where the policy keeps the token.
    softcap: whether logits are soft-capped.

  Returns:
    "NAME|SUM" -> float64 [S], the sums being count, silent (no latent active),
    flat (active, without effect), active (latents), and over the tokens that
    are left their number `measured`, `r` (r_L0) and `effective` (exp S).
  """
  where = str(sites.check(lm.config, site))
  tokens = jnp.asarray(tokens)
  mask, keep = tokens != policy.pad_id, policy.keep(tokens)
  counted = policy.keep_loss(tokens)
  before, x = _activations(lm.config, where, lm.params, tokens, mask)
  slope = functools.partial(
    gradient,
    lm.config,
    where,
    lm.params,
    tokens,
    mask,
    counted,
    before,
    target=target,
    softcap=softcap,
  )
  shared = slope(x) if at == "x" else None
  sums = {}
  for name, sae in saes.items():
    if at == "x":
      here = shared
    else:
      here = slope(jnp.where(keep[:, :, None], sae(x), x))
    active, effects, effective = _importance(sae, x[:, :-1], here[:, :-1])
    active, effects = np.asarray(active), np.asarray(effects)
    effective = np.asarray(effective, np.float64)
    kept = np.asarray(counted)
    measured = kept & (effects > 0)
    total = lambda values, over: np.where(over, values, 0.0).sum(axis=1)
    found = (
      total(1, kept),
      total(1, kept & (active == 0)),
      total(1, kept & (active > 0) & (effects == 0)),
      total(active, kept),
      total(1, measured),
      total(effective / np.maximum(effects, 1), measured),
      total(effective, measured),
    )
    sums |= {
      f"{name}|{key}": each for key, each in zip(SUMS, found, strict=True)
    }
  return sums


@functools.partial(jax.jit, static_argnums=(0, 1))
def _activations(config, site, params, tokens, mask):
  """(stream before the site's block or None, x [S, T, D])."""
  where = sites.parse(site)
  taps = [site]
  if where.layer and where.kind != "res":
    taps.append(f"res.{where.layer - 1}")
  out = gemma.forward(
    config,
    params,
    tokens,
    taps=tuple(taps),
    mask=mask,
    num_layers=where.layer + 1,
  )
  before = out.acts[taps[-1]] if len(taps) > 1 else None
  return before, out.acts[site].astype(jnp.float32)


@functools.partial(
  jax.jit, static_argnums=(0, 1), static_argnames=("target", "softcap")
)
def gradient(
  config, site, params, tokens, mask, counted, before, x, *, target, softcap
) -> jax.Array:
  """Gradient of mean-centred logits with respect to a site's activation.

  Args:
    config: the architecture.
    site: such as "res.12".
    params: all parameters from that layer on.
    tokens: int [S, T].
    mask: bool [S, T], False for padding.
    counted: bool [S, T - 1], positions whose logit counts.
    before: [S, T, width], the residual stream that enters the site's block;
      None for "res", and in layer 0.
    x: float32 [S, T, D], the activation.
    target: "own": at each position the gradient of its own logit; "all": of
      the sum over all positions.
    softcap: whether logits are soft-capped.

  Returns:
    float32 [S, T, D]; the last position, which predicts nothing, is 0.
  """
  where = sites.parse(site)

  def total(x):
    if where.kind == "res":
      start, edits = (where.layer + 1, x), None
    else:
      start = None if before is None else (where.layer, before)
      edits = {site: lambda _: x}
    out = gemma.forward(
      config,
      params,
      tokens,
      edits=edits,
      mask=mask,
      logits=False,
      start=start,
      across_positions=target == "all",
    )
    logits = gemma.centred_logits(
      config, params, out.residual[:, :-1], tokens[:, 1:], softcap=softcap
    )
    return jnp.where(counted, logits, 0).sum()

  return jax.grad(total)(x)


@jax.jit
def _importance(sae, x, slope):
  """(active, ||y||_0, exp(S(p))), each [S, T], a sequence at a time."""

  def sequence(pair):
    x, slope = pair
    latents = sae.encode(x)
    along = jnp.matmul(slope, sae.params.w_dec.T, precision="highest")
    effective, effects = effective_number(latents * along)
    return (latents > 0).sum(axis=-1), effects, effective

  return jax.lax.map(sequence, (x, slope))


def effective_number(effects: jax.Array) -> tuple[jax.Array, jax.Array]:
  """exp(S(p)) and ||y||_0 of attributions y.

  Args:
    effects: float [..., M].

  Returns:
    float [...], which means nothing where all effects are 0, and int [...].
  """
  size = jnp.abs(effects)
  # By the largest first, so that no scale of the logits overflows.
  size = size / jnp.maximum(size.max(axis=-1, keepdims=True), 1e-37)
  total = size.sum(axis=-1, keepdims=True)
  p = size / jnp.maximum(total, 1e-37)
  entropy = jax.scipy.special.entr(p).sum(axis=-1)
  return jnp.exp(entropy), (effects != 0).sum(axis=-1)

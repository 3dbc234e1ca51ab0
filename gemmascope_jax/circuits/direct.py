"""What each latent writes straight into a logit: direct logit attribution.

The residual stream r of a token ends in the final norm and the unembedding. With
the norm's scale held at its value, the logit before the soft-cap is linear,

  l_a = r . c,   c = (1 + gamma) * E_a / rms(r),

for a difference of logits with E_a - E_b. What an SAE's site writes into r thus
splits exactly into its latents f_i (d_i . c), its bias, its error (and a skip
transcoder's skip), beside a rest, what everything else wrote:

* `res.L` is r itself after the last layer, and then the rest is 0; after an
  earlier one it is what was in the stream there, and the rest is all that later
  layers added, also in answer to it: this is the direct path only;
* `mlp.L` is added to the stream as it is;
* `att.L` is first multiplied by W_O and normalised, by a scale that is held too:
  c becomes W_O ((1 + gamma') * c / rms(z W_O)).

`mlp_in.L` writes into the MLP only and has no direct path; a transcoder from it
writes at `mlp.L`. Gemma 2's final soft-cap, cap tanh(l / cap), is left out: it
is no sum, and keeps the order of the logits. `Direct.slope` is its derivative, so
slope times an effect is what the capped logit changes by, to first order.

Letters: T tokens, D width of the stream, M latents, n active latents.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax import gemma
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.gemma import sites, vocabulary
from gemmascope_jax.sae.sae import SAE, SAEConfig
from gemmascope_jax.studies import sparsity_fidelity


@dataclasses.dataclass(frozen=True, eq=False)
class Direct:
  """One SAE's direct attribution at one token.

  Attributes:
    site: where the SAE writes.
    position: of the token.
    latents: int64 [n], the active ones, largest effect first.
    activations: float32 [n].
    effects: float32 [n], each one's share of `logit`.
    bias: that of b_dec.
    error: that of the SAE's error.
    skip: that of a skip transcoder's skip connection, else 0.
    rest: that of everything else.
    logit: before the soft-cap; a difference of two if `wrong` was given.
    slope: d capped / d uncapped logit of the answer; 1 without a soft-cap.
  """

  site: str
  position: int
  latents: np.ndarray
  activations: np.ndarray
  effects: np.ndarray
  bias: float
  error: float
  skip: float
  rest: float
  logit: float
  slope: float


def direct(
  lm,
  sae: SAE,
  tokens: np.ndarray,
  answer: int,
  wrong: int | None = None,
  *,
  site: str | None = None,
  position: int = -1,
  policy: TokenPolicy | None = None,
) -> Direct:
  """Direct logit attribution of every active latent.

  Args:
    lm: a `Gemma` with all its layers.
    sae: an SAE of `res`, `mlp` or `att`, or a transcoder to `mlp`.
    tokens: int32 [T].
    answer: token id whose logit is split up.
    wrong: token id whose logit is subtracted; None: nothing is.
    site: where the SAE reads; None: what it says itself.
    position: at which token; -1: the last.
    policy: where the SAE belongs; None: the tokenizer's.

  Returns:
    The attribution; effects, bias, error, skip and rest add up to the logit.

  Raises:
    ValueError: an SAE without a site or of another model, a site without a
      direct path, a token or position that is not there, or one that the policy
      excludes.
  """
  policy = TokenPolicy.of(lm.tokenizer) if policy is None else policy
  reads = site or sae.config.site
  if reads is None:
    raise ValueError(
      "the SAE does not say at which site it was trained: give site='res.5'"
    )
  if sae.config.parts:
    raise ValueError(
      f"the SAE is a crosscoder of {sae.config.site}: expected one site"
    )
  target = sae.config.target_site
  sparsity_fidelity.check_sae(lm, reads, sae, policy, target=target)
  writes = target or reads
  if sites.parse(writes).kind == "mlp_in":
    raise ValueError(
      f"{writes} writes into the MLP alone, which is not linear: there is no"
      " direct path to a logit; use `circuits.attribute`"
    )
  tokens = np.asarray(tokens, np.int32)
  position = _checked(lm, tokens, position, (answer, wrong), policy)
  sae = sae.replace(config=SAEConfig(k=sae.config.k))
  sae = jax.tree.map(jnp.asarray, sae)
  ids = jnp.asarray([answer] if wrong is None else [answer, wrong])
  f, effects, parts, logits = jax.tree.map(
    np.asarray,
    _split(lm.config, reads, writes, lm.params, sae, tokens, position, ids),
  )
  active = np.flatnonzero(f)
  active = active[np.argsort(-np.abs(effects[active]), kind="stable")]
  logit = float(logits[0] - logits[1]) if wrong is not None else float(logits)
  bias, error, skip = (float(part) for part in parts)
  inside = float(np.sum(effects, dtype=np.float64)) + bias + error + skip
  cap = lm.config.final_softcap
  first = float(logits[0] if wrong is not None else logits)
  return Direct(
    site=writes,
    position=position,
    latents=active,
    activations=f[active],
    effects=effects[active],
    bias=bias,
    error=error,
    skip=skip,
    rest=logit - inside,
    logit=logit,
    slope=1.0 if cap is None else float(1 - np.tanh(first / cap) ** 2),
  )


def _checked(lm, tokens, position, asked, policy) -> int:
  if tokens.ndim != 1 or not -len(tokens) <= position < len(tokens):
    raise ValueError(
      f"position {position} of tokens of shape {tokens.shape}: expected [T] and"
      " a position in it"
    )
  for token in asked:
    if token is not None and not 0 <= token < lm.config.vocab_size:
      raise ValueError(
        f"token {token}: {lm.config.name} has tokens"
        f" 0..{lm.config.vocab_size - 1}"
      )
  position %= len(tokens)
  if not policy.keep(tokens[None])[0, position]:
    raise ValueError(
      f"position {position} is token {tokens[position]}, which the token policy"
      " excludes: the SAE was never trained there"
    )
  return position


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _split(config, reads, writes, params, sae, tokens, position, ids):
  """(f [M], effects [M], (bias, error, skip), logits) at a token."""
  out = gemma.forward(
    config, params, tokens[None], taps=(reads, writes), logits=False
  )
  at = lambda values: values[0, position].astype(jnp.float32)
  x, y, last = at(out.acts[reads]), at(out.acts[writes]), at(out.residual)
  dot = functools.partial(jnp.matmul, precision="highest")
  rows = jnp.take(params["embedder"]["embedding"], ids, axis=0)
  rows = rows.astype(jnp.float32)
  total = rows[0] - rows[1] if len(ids) > 1 else rows[0]
  final = _scale(config, params["final_norm"], last)
  c = _before(config, params, writes, y, final * total)
  f = sae.encode(x)
  plain = dot(f, sae.params.w_dec) + sae.params.b_dec
  x_hat = sae.decode(f, x)
  parts = (
    dot(sae.params.b_dec, c),
    dot(y - x_hat, c),
    dot(x_hat - plain, c),
  )
  logits = dot(rows, final * last)
  return f, f * dot(sae.params.w_dec, c), parts, logits.squeeze()


def _scale(config, norm, x):
  """float32 [D]: what an RMSNorm multiplies x [D] by."""
  rms = jax.lax.rsqrt(jnp.mean(jnp.square(x)) + config.norm_eps)
  return rms * (1 + norm["scale"].astype(jnp.float32))


def _before(config, params, writes, y, c):
  """The direction c [D] of the stream as one of the site's activation y."""
  site = sites.parse(writes)
  if site.kind != "att":
    return c
  layer = params[f"layer_{site.layer}"]
  w_o = layer["attn"]["o"].reshape(-1, config.width).astype(jnp.float32)
  written = jnp.matmul(y, w_o, precision="highest")
  scale = _scale(config, layer["post_attention_norm"], written)
  return jnp.matmul(w_o, scale * c, precision="highest")


def promoted(
  lm, site: str, sae: SAE, latents: Sequence[int], count: int = 4
) -> list[list[str]]:
  """The tokens that latents' directions raise most, to say what they are.

  By the gain of the final norm and the unembedding, as on latents' cards; heads
  go through W_O and its norm's gain first.

  Args:
    lm: a `Gemma`.
    site: where the SAE writes; not `mlp_in`.
    sae: the SAE.
    latents: which.
    count: tokens each.

  Returns:
    Their display strings, for each latent; empty lists for `mlp_in`.
  """
  where = sites.check(lm.config, site)
  if where.kind == "mlp_in":
    return [[] for _ in latents]
  d = np.asarray(sae.params.w_dec)[np.asarray(latents, np.int64)]
  if where.kind == "att":
    layer = lm.params[f"layer_{where.layer}"]
    w_o = np.asarray(layer["attn"]["o"], np.float32)
    gain = np.asarray(layer["post_attention_norm"]["scale"], np.float32)
    d = d @ w_o.reshape(-1, lm.config.width) * (1 + gain)
  best = _best(
    lm.params["embedder"]["embedding"],
    lm.params["final_norm"]["scale"],
    jnp.asarray(d),
    count,
  )
  return [lm.tokenizer.pieces(row.tolist()) for row in np.asarray(best)]


@functools.partial(jax.jit, static_argnums=3)
def _best(table, scale, directions, count):
  """int [n, count], a latent at a time: [n, V] is never held."""
  gain = 1 + scale.astype(jnp.float32)

  def one(d):
    row = vocabulary.chunk_logits(
      table[None], (gain * d).astype(table.dtype)[:, None], "highest"
    )
    return jax.lax.top_k(row.reshape(-1), count)[1]

  return jax.lax.map(one, directions)

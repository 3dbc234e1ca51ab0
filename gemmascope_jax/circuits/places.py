"""Where the nodes of a circuit stand: sites with SAEs, and the embedding.

At a site with an SAE the activation of each token is written as

  x = sum_i f_i d_i + b_dec + e,

f its latents, d_i the rows of W_dec, e the SAE's error: a node for each active
latent and one for e. The sum is exact, so whatever is linear in x is the sum of
what its nodes do. At positions that the token policy excludes (BOS) the SAE was
never trained: there f = 0, and e is all of x - b_dec. The embedding has no SAE;
its e is x.

Letters: T tokens, D width of the site, M latents.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax import gemma
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.gemma import sites, vocabulary
from gemmascope_jax.gemma.layers import rms_norm
from gemmascope_jax.sae.sae import SAE, SAEConfig
from gemmascope_jax.studies import sparsity_fidelity

EMBED = "embed"
# In the order in which a block computes them.
_WITHIN_BLOCK = ("att", "mlp_in", "mlp", "res")


@flax.struct.dataclass
class Metric:
  """What a circuit is about: a logit, or the difference of two.

  Attributes:
    answer: int, a token id.
    wrong: int, the id whose logit is subtracted; None: nothing is.
    softcap: whether logits are soft-capped, as the model's own are.
  """

  answer: Any
  wrong: Any = None
  softcap: bool = flax.struct.field(pytree_node=False, default=True)

  def of(self, config, params, residual: jax.Array) -> jax.Array:
    """The metric, a scalar, from the last stream [T, D] at its last token."""
    scale = params["final_norm"]["scale"]
    hidden = rms_norm(residual[-1:], scale, config.norm_eps)
    ids = [self.answer] if self.wrong is None else [self.answer, self.wrong]
    logits = vocabulary.target_logits(
      params["embedder"]["embedding"],
      jnp.repeat(hidden, len(ids), axis=0),
      jnp.asarray(ids),
      "highest",
    )
    cap = config.final_softcap if self.softcap else None
    logits = vocabulary.soft_cap(logits, cap)
    return logits[0] - logits[1] if len(ids) > 1 else logits[0]


@flax.struct.dataclass
class Place:
  """One site on one prompt, and what its nodes change to.

  Attributes:
    sae: None at the embedding.
    x: float32 [T, D], the activation of the clean prompt.
    patch: float32 [T, D], that of the patch prompt; with `zero`, b_dec where an
      SAE belongs and x elsewhere.
    keep: bool [T], where the SAE belongs.
    before: float32 [T, width], the stream that enters the site's block; None
      where `start` needs none.
    name: such as "res.5", or "embed".
    zero: whether the baseline is the absence of all latents and of the error.
  """

  sae: SAE | None
  x: jax.Array
  patch: jax.Array
  keep: jax.Array
  before: jax.Array | None
  name: str = flax.struct.field(pytree_node=False)
  zero: bool = flax.struct.field(pytree_node=False, default=False)

  def bare(self) -> Place:
    """Without its SAE: all that `run` needs."""
    return self.replace(sae=None, zero=False)

  def local(self) -> Place:
    """Without where it is: all of one shape compile once."""
    return self.replace(before=None, name="")

  def latents(self, x: jax.Array, keep: jax.Array) -> jax.Array:
    """float32 [..., M]: f of rows [..., D]; 0 where the SAE has no place."""
    return jnp.where(keep[..., None], self.sae.encode(x), 0)

  def parts(self, x, patch, keep) -> tuple[jax.Array, ...]:
    """(f, its change, e's change) of rows [..., D], clean to patch."""
    f = self.latents(x, keep)
    new = jnp.zeros_like(f) if self.zero else self.latents(patch, keep)
    decode = lambda values: jnp.matmul(
      values, self.sae.params.w_dec, precision="highest"
    )
    return f, new - f, (patch - x) - decode(new - f)


def order(name: str) -> tuple[int, int]:
  """Sorts places as the model computes them."""
  if name == EMBED:
    return -1, 0
  site = sites.parse(name)
  return site.layer, _WITHIN_BLOCK.index(site.kind)


def check(lm, saes: Mapping[str, SAE], policy: TokenPolicy) -> None:
  """Refuses what is no SAE of this model's sites.

  Raises:
    ValueError: no SAEs, a site that the model lacks, an SAE of another site or
      model, a transcoder or a crosscoder; names it.
  """
  if not saes:
    raise ValueError("no SAEs: expected at least one, as {'res.5': sae}")
  for name, sae in saes.items():
    if sae.config.parts:
      raise ValueError(
        f"the SAE at {name} is a crosscoder of {sae.config.site}: a circuit's"
        " nodes are latents of one site each, so give SAEs of one site"
      )
    if sae.config.target_site or sae.params.w_skip is not None:
      raise ValueError(
        f"the SAE at {name} is a transcoder to {sae.config.target_site}: nodes"
        " of a circuit are latents that reconstruct the site that they read;"
        " give an SAE of that site"
      )
    sparsity_fidelity.check_sae(lm, name, sae, policy)


def make(
  lm,
  saes: Mapping[str, SAE],
  clean: np.ndarray,
  patch: np.ndarray | None,
  policy: TokenPolicy,
) -> list[Place]:
  """The embedding and the SAEs' sites, in the model's order.

  Args:
    lm: a `Gemma`.
    saes: by site.
    clean: int32 [T].
    patch: int32 [T]; None: the zero baseline.
    policy: where SAEs belong.
  """
  names = sorted(saes, key=order)
  taps = list(names)
  for name in names:
    site = sites.parse(name)
    if site.kind != "res" and site.layer:
      taps.append(f"res.{site.layer - 1}")
  taps = tuple(dict.fromkeys(taps))
  acts = activations(lm.config, taps, lm.params, jnp.asarray(clean))
  other = acts
  if patch is not None:
    other = activations(lm.config, taps, lm.params, jnp.asarray(patch))
  keep = jnp.asarray(policy.keep(np.asarray(clean)[None])[0])
  if patch is not None:
    # Where only one prompt has a special token there is no latent to compare.
    keep &= jnp.asarray(policy.keep(np.asarray(patch)[None])[0])
  found = []
  for name in (EMBED, *names):
    sae, before = saes.get(name), None
    x, y = acts[name], other[name]
    if sae is not None:
      # Without its provenance, which is static, all of one shape compile once.
      sae = sae.replace(config=SAEConfig(k=sae.config.k))
      sae = jax.tree.map(jnp.asarray, sae)
      site = sites.parse(name)
      before = acts.get(f"res.{site.layer - 1}") if site.kind != "res" else None
    if patch is None:
      nothing = jnp.zeros_like(x) if sae is None else sae.params.b_dec[None]
      y = jnp.where(keep[:, None], nothing, x)
    found.append(Place(sae, x, y, keep, before, name, patch is None))
  return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def activations(config, taps, params, tokens) -> dict[str, jax.Array]:
  """float32 [T, width] at sites and at the embedding, of int [T]."""
  embedded = gemma.forward(config, params, tokens[None], num_layers=0)
  out = gemma.forward(
    config,
    params,
    tokens[None],
    taps=taps,
    num_layers=sites.layers_needed(config, taps),
  )
  found = {EMBED: embedded.residual} | out.acts
  return {name: x[0].astype(jnp.float32) for name, x in found.items()}


def run(
  config, params, tokens, place: Place, x, frozen=None, target=None
) -> jax.Array:
  """The model from a place on, as a function of its activation.

  Args:
    config: the architecture.
    params: all parameters.
    tokens: int [T].
    place: where to begin; its SAE is not used.
    x: float32 [T, D], the activation there.
    frozen: site -> activation [T, width] that it keeps whatever x is: no
      gradient passes it.
    target: site to return; None: the last residual stream.

  Returns:
    float32 [T, width of the target].
  """
  edits = {
    name: lambda _, value=value: value[None]
    for name, value in (frozen or {}).items()
  }
  if place.name == EMBED:
    start = 0, x[None]
  else:
    site = sites.parse(place.name)
    if site.kind == "res":
      start = site.layer + 1, x[None]
    else:
      edits[place.name] = lambda _: x[None]
      before = place.before
      start = None if before is None else (site.layer, before[None])
  out = gemma.forward(
    config,
    params,
    tokens[None],
    taps=() if target is None else (target,),
    edits=edits,
    num_layers=None if target is None else sites.parse(target).layer + 1,
    logits=False,
    start=start,
  )
  found = out.residual if target is None else out.acts[target]
  return found[0].astype(jnp.float32)

"""A planted circuit is found first, and nothing where it was taken out.

In a model of almost nothing, the MLP of block 1 reads direction A of the stream
and writes direction B, which the answer's unembedding reads. One SAE after each
block has a latent for each direction. The only way from the token that carries A
to the answer is A's latent after block 0, then B's after block 1.
"""

import dataclasses

import jax
import numpy as np
import pytest

from gemmascope_jax import circuits, gemma
from gemmascope_jax.gemma import GemmaConfig
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig
from tests.circuits import tiny

D, ANSWER, WRONG, WITH_A, WITHOUT = 32, 50, 51, 40, 41
CONFIG = GemmaConfig(
  name="gemma-planted",
  vocab_size=60,
  width=D,
  num_layers=2,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  mlp_width=16,
  query_pre_attn_scalar=8.0,
  layer_pattern=("global",),
  window=8,
)
# Directions, and the latents of theirs in each SAE.
A, B, OTHER, ALWAYS, BACKGROUND, READ = range(6)
LATENT_A, LATENT_B = 7, 11
EDGES = 40


def _lm(planted):
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: gemma.init(CONFIG, jax.random.key(0)))
  draw = lambda x: rng.normal(0, 0.01, x.shape).astype(np.float32)
  params = jax.tree.map(draw, shapes)
  for layer in ("layer_0", "layer_1"):
    for norm in ("post_attention_norm", "post_mlp_norm"):
      # The norm makes much of little: hold what is not planted down.
      params[layer][norm]["scale"] = np.full(D, -0.98, np.float32)
  table = rng.normal(0, 0.01, (60, D)).astype(np.float32)
  table[:, ALWAYS] += 1.0  # so that no norm depends on the rest
  table[WITH_A, A] += 0.1
  table[WITHOUT, OTHER] += 0.1
  table[ANSWER, B] += 1.0
  params["embedder"]["embedding"] = table
  mlp = params["layer_1"]["mlp"]
  mlp["gate"][ALWAYS, :2] = mlp["up"][ALWAYS, 0] = 1.0
  mlp["down"][0, BACKGROUND] = 2.0  # else the norm would hide how much of B
  if planted:
    mlp["up"][A, 1] = 1.0
    mlp["down"][1, B] = 2.0
    params["layer_1"]["post_mlp_norm"]["scale"] = np.zeros(D, np.float32)
  return dataclasses.replace(tiny.lm(), config=CONFIG, params=params)


def _sae(site, latent, direction):
  """Random directions, but for one; all on what the embeddings carry."""
  rng = np.random.default_rng(latent)
  w_dec = rng.normal(size=(16, D)).astype(np.float32)
  w_dec[:, [A, B]] = 0  # of the planted directions nobody else knows
  w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
  w_dec[latent] = np.eye(D)[direction]
  return SAE(
    Params(
      w_enc=w_dec.T.copy(),
      b_enc=np.zeros(16, np.float32),
      w_dec=w_dec,
      b_dec=np.zeros(D, np.float32),
      threshold=np.full(16, 0.05, np.float32),
    ),
    SAEConfig(site=site),
  )


def _found(planted):
  saes = {
    "res.0": _sae("res.0", LATENT_A, A),
    "res.1": _sae("res.1", LATENT_B, B),
  }
  clean = np.array([2, 30, 31, WITH_A], np.int32)
  patch = np.array([2, 30, 31, WITHOUT], np.int32)
  metric = circuits.Metric(ANSWER, WRONG)
  found = circuits.attribute(
    _lm(planted), saes, clean, patch, metric, edges=EDGES, ablate=planted
  )
  latents = [node for node in found.nodes if not node.is_error]
  between = [
    (found.nodes[e.source], found.nodes[e.target], e.weight)
    for e in found.edges
    if e.target is not None
    and not found.nodes[e.source].is_error
    and not found.nodes[e.target].is_error
  ]
  return found, latents, between


def test_the_planted_path_comes_first_and_only_where_it_is():
  found, latents, between = _found(True)
  of = lambda site: [node for node in latents if node.site == site]
  a, b = of("res.0")[0], of("res.1")[0]
  assert (a.latent, a.position) == (LATENT_A, 3)
  assert (b.latent, b.position) == (LATENT_B, 3)
  assert {(n.site, n.latent) for n in latents[:2]} == {
    ("res.0", LATENT_A),
    ("res.1", LATENT_B),
  }
  # It makes for the answer, and patching it really takes that away.
  assert a.effect < 0 and b.effect < 0
  assert b.ablated == pytest.approx(b.effect, rel=0.3)
  source, target, weight = between[0]
  assert (source.latent, target.latent) == (LATENT_A, LATENT_B)
  assert source.site == "res.0" and target.site == "res.1"
  assert abs(weight) > 10 * abs(between[1][2])
  # The largest edges are kept, and no more than were asked for.
  sizes = [abs(edge.weight) for edge in found.edges]
  assert len(sizes) == EDGES and sizes == sorted(sizes, reverse=True)

  null, _, others = _found(False)
  pairs = {(u.latent, d.latent): abs(w) for u, d, w in others}
  assert pairs.get((LATENT_A, LATENT_B), 0) < 0.01 * abs(weight)
  assert all(size < 0.1 * abs(weight) for size in pairs.values())
  assert abs(null.value) < 0.1 * abs(found.value)

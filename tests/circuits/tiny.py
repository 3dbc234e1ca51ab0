"""A tiny random Gemma 2, and random SAEs at its sites."""

import dataclasses

import jax
import numpy as np

from gemmascope_jax import gemma
from gemmascope_jax.gemma import sites
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig
from tests.data import tiny_gemma

CONFIG = dataclasses.replace(
  tiny_gemma.CONFIG, attn_softcap=2.0, final_softcap=3.0, num_kv_heads=2
)


class Pieces(tiny_gemma.ByteTokenizer):
  """With something to display for each id."""

  def pieces(self, ids):
    return [f"<{i}>" for i in ids]


def lm(seed=0, config=CONFIG):
  shapes = jax.eval_shape(lambda: gemma.init(config, jax.random.key(0)))
  rng = np.random.default_rng(seed)
  draw = lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype)
  return dataclasses.replace(
    tiny_gemma.lm(),
    config=config,
    params=jax.tree.map(draw, shapes),
    tokenizer=Pieces(),
  )


def sae(site, width=20, seed=0, config=CONFIG, **fields):
  """Random, with latents that are on half of the time and a bias."""
  rng = np.random.default_rng(seed)
  d = sites.site_width(config, site)
  w_dec = rng.normal(size=(width, d)).astype(np.float32)
  w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
  return SAE(
    Params(
      w_enc=(w_dec.T * 0.7).copy(),
      b_enc=rng.normal(0, 0.1, width).astype(np.float32),
      w_dec=w_dec,
      b_dec=rng.normal(0, 0.2, d).astype(np.float32),
      threshold=rng.uniform(0, 0.1, width).astype(np.float32),
    ),
    SAEConfig(site=site, **fields),
  )


CLEAN = np.array([2, 17, 90, 33, 120, 8], np.int32)
PATCH = np.array([2, 17, 45, 33, 121, 8], np.int32)

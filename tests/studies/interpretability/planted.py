"""Latents whose right score is known by construction."""

import numpy as np

from gemmascope_jax.sae.sae import SAE, Params, SAEConfig
from gemmascope_jax.studies.interpretability.contexts import (
  Contexts,
  Gathered,
  Sample,
)

WORD = 7  # what a planted latent fires on
KINDS = ("top",) * 4 + ("random",) * 8


class Tokenizer:
  """Token 12 is written "w12 "."""

  fingerprint = "words"
  bos_id, eos_id, pad_id, vocab_size = 2, 1, 0, 50

  def pieces(self, ids):
    return [f"w{i} " for i in ids]


def tokens(random, contexts, length=24):
  return random.integers(4, 40, (contexts, length)).astype(np.int32)


def sample(latent, kind, seed=0):
  """A latent that fires on one word ("word") or on anything ("noise")."""
  random = np.random.default_rng([seed, latent])
  parts = []
  for count in (6, len(KINDS)):
    made = tokens(random, count)
    fires = made == WORD
    if kind == "word":
      fires[:4, 3] = True
      made[:4, 3] = WORD
      strength = 3.0
    else:
      fires = random.random(made.shape) < 0.04
      strength = random.gamma(2.0, 1.0, made.shape)
    keep = np.ones(made.shape, bool)
    keep[:, 0] = False
    active = np.where(fires & keep, strength, 0).astype(np.float32)
    parts.append(Contexts(made, active, keep))
  return Sample(latent, 0.1, *parts, KINDS)


def gathered(kinds, seed=0):
  samples = [sample(i, kind, seed) for i, kind in enumerate(kinds)]
  return Gathered(samples, width=100, alive=90, eligible=80, tokens=10_000)


def sae(family="jumprelu", fill=1.0):
  """A small SAE of which only its name in a study matters."""
  zeros = np.zeros
  return SAE(
    Params(
      w_enc=np.full((2, 3), fill, np.float32),
      b_enc=zeros(3, np.float32),
      w_dec=np.eye(3, 2, dtype=np.float32),
      b_dec=zeros(2, np.float32),
      threshold=zeros(3, np.float32),
    ),
    SAEConfig(family=family, site="res.1"),
  )

"""A tiny Gemma whose words are directions, and an SAE with a latent of one."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from gemmascope_jax import gemma
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig

WORDS = (
  "the river was cold and Paris is a city of light where people sing about"
  " rain snow wind stones birds trees bread wine old new red blue far near"
).split()
PARIS = 5  # the latent that writes the direction of the token "Paris"
SITE = "res.1"


class WordTokenizer:
  """A token a word, after the special ids; an unknown one is "the"."""

  pad_id, eos_id, bos_id = 0, 1, 2
  vocab_size = 3 + len(WORDS)
  fingerprint = "words"

  def encode(self, text):
    place = {word: 3 + i for i, word in enumerate(WORDS)}
    return [place.get(word, 3) for word in text.split()]

  def decode(self, ids):
    return " ".join(WORDS[i - 3] for i in ids if i > 2)

  def pieces(self, ids):
    return [self.decode([i]) for i in ids]


CONFIG = gemma.GemmaConfig(
  name="gemma-words",
  vocab_size=WordTokenizer.vocab_size,
  width=16,
  num_layers=3,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  mlp_width=24,
  query_pre_attn_scalar=8.0,
  layer_pattern=("local", "global"),
  window=4,
  context=64,
)
POLICY = TokenPolicy.of(WordTokenizer())


@dataclasses.dataclass(frozen=True, eq=False)
class Lm:
  config: gemma.GemmaConfig
  params: Any
  tokenizer: Any
  weights_hash: str
  label: str


@functools.cache
def lm():
  shapes = jax.eval_shape(lambda: gemma.init(CONFIG, jax.random.key(0)))
  random = np.random.default_rng(4)
  draw = lambda x: random.normal(0, 0.2, x.shape).astype(x.dtype)
  params = jax.tree.map(draw, shapes)
  table = random.normal(size=(CONFIG.vocab_size, CONFIG.width))
  table /= np.linalg.norm(table, axis=1, keepdims=True)
  # Special tokens are never said: their row is no direction.
  table[:3] = 0.01 * table[:3]
  params["embedder"] = {"embedding": table.astype(np.float32)}
  scale = np.zeros(CONFIG.width, np.float32)
  params["final_norm"] = {"scale": scale}
  return Lm(CONFIG, params, WordTokenizer(), "hash-words", "words")


def paris():
  """float64 [D]: the direction that the token's unembedding reads."""
  ids = lm().tokenizer.encode("Paris")
  row = np.float64(lm().params["embedder"]["embedding"][ids[0]])
  return row / np.linalg.norm(row)


def sae(latents=12, seed=0, **config):
  """Random, but for latent 5: it reads and writes Paris."""
  random = np.random.default_rng(seed)
  width = CONFIG.width
  w_dec = random.normal(size=(latents, width))
  w_dec[PARIS] = paris()
  w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
  params = Params(
    w_enc=w_dec.T * 0.8,
    b_enc=random.normal(0, 0.3, latents),
    w_dec=w_dec,
    b_dec=random.normal(0, 0.3, width),
    threshold=np.full(latents, 0.4),
  )
  params = jax.tree.map(np.float32, params)
  return SAE(params, SAEConfig(**({"site": SITE} | config)))

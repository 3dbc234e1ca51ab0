"""A real Gemma, only tiny and random, with a byte tokenizer: for data tests."""

import dataclasses
from typing import Any

import jax
import numpy as np

from gemmascope_jax import gemma
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.text import documents
from gemmascope_jax.data.tokens import packing


class ByteTokenizer:
  """UTF-8 bytes after the special ids; a blank line is one token."""

  pad_id, eos_id, bos_id, blank_id = 0, 1, 2, 3
  vocab_size = 4 + 256
  fingerprint = "bytes"

  def encode(self, text):
    ids = []
    for number, part in enumerate(text.split("\n\n")):
      ids += [self.blank_id] * (number > 0)
      ids += [4 + byte for byte in part.encode()]
    return ids

  def decode(self, ids):
    parts = (b"\n\n" if i == 3 else bytes([i - 4]) for i in ids if i > 2)
    return b"".join(parts).decode()


@dataclasses.dataclass(frozen=True)
class Lm:
  config: gemma.GemmaConfig
  params: Any
  tokenizer: Any
  weights_hash: str
  label: str


CONFIG = gemma.GemmaConfig(
  name="gemma-tiny",
  vocab_size=ByteTokenizer.vocab_size,
  width=12,
  num_layers=3,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  mlp_width=16,
  query_pre_attn_scalar=8.0,
  layer_pattern=("local", "global"),
  window=8,
)


def lm(seed=0):
  # numpy's numbers: `gemma.init` would compile each of its operations.
  shapes = jax.eval_shape(lambda: gemma.init(CONFIG, jax.random.key(0)))
  random = np.random.default_rng(seed)
  draw = lambda x: random.normal(0, 0.2, x.shape).astype(x.dtype)
  params = jax.tree.map(draw, shapes)
  return Lm(CONFIG, params, ByteTokenizer(), f"hash-{seed}", f"tiny-{seed}")


def texts(count=60, seed=0):
  random = np.random.default_rng(seed)
  words = ["alpha", "beta", "gamma", "delta", "épsilon"]
  return [
    " ".join(random.choice(words, random.integers(1, 12))) + f" {number}"
    for number in range(count)
  ]


def windows(count=60, window=16, seed=0, **options):
  mixed = documents.mix([("made up", texts(count, seed))], held_out=0.0)
  return packing.pack(mixed, ByteTokenizer(), window, **options)


POLICY = TokenPolicy.of(ByteTokenizer())
SITES = ("res.1", "att.0", "mlp.1")
OPTIONS = dict(rows=900, rows_per_shard=128, batch=4, progress=False)

"""A tiny random Gemma with a chat's words, and chats that can be learned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tiny_gemma
from turn_tokenizer import CHAT, TOKENIZER

from gemmascope_jax import gemma
from gemmascope_jax.data.tokens import conversations

CONFIG = dataclasses.replace(
  tiny_gemma.CONFIG,
  vocab_size=TOKENIZER.vocab_size,
  width=32,
  mlp_width=64,
  context=256,
)


def lm(dtype=jnp.float32, seed=0):
  shapes = jax.eval_shape(lambda: gemma.init(CONFIG, jax.random.key(0)))
  rng = np.random.default_rng(seed)
  draw = lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), dtype)
  params = jax.tree.map(draw, shapes)
  # Words that are far enough apart for one to become sure.
  params["embedder"]["embedding"] *= 4
  return gemma.Gemma(CONFIG, params, TOKENIZER, f"{seed:064x}", "tiny")


def chats(count=12, seed=0, window=40):
  """The model always answers "ok"; what the user says is noise."""
  rng = np.random.default_rng(seed)
  words = lambda: "".join(chr(97 + i) for i in rng.integers(0, 26, 4))
  texts = [f"A: {words()}\nB: ok\nA: {words()}" for _ in range(count)]
  return conversations.windows(texts, CHAT, TOKENIZER, window, count)

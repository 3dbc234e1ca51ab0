"""What the forward pass computes and holds, by formula."""

from __future__ import annotations

from gemmascope_jax.gemma.config import GemmaConfig


def flops_of_token(config: GemmaConfig, layers: int, length: int) -> float:
  """Matrix products of layers on one token of a sequence, operations.

  Args:
    config: the model.
    layers: how many of them run.
    length: tokens of the sequence; a token sees half of them, on average.
  """
  attention = config.num_heads * config.head_dim
  weights = 2 * (attention + config.num_kv_heads * config.head_dim)
  weights = config.width * (weights + 3 * config.mlp_width)
  return layers * (2 * weights + 2 * attention * length)


def unembedding_flops(config: GemmaConfig) -> float:
  """The product of one token with the embedding table, operations."""
  return 2 * config.width * config.vocab_size


def parameters(config: GemmaConfig, layers: int | None = None) -> int:
  """Weights of the embedding and of the first layers; of all: None.

  Norms' scales are counted, too.
  """
  layers = config.num_layers if layers is None else layers
  heads = 2 * config.num_heads + 2 * config.num_kv_heads
  each = config.width * (heads * config.head_dim + 3 * config.mlp_width)
  each += 4 * config.width + (2 * config.head_dim if config.qk_norm else 0)
  return config.width * (config.vocab_size + 1) + layers * each

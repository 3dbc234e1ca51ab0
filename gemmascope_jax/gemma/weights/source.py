"""What every weight format offers before anything heavy is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from gemmascope_jax.gemma.config import GemmaConfig
from gemmascope_jax.gemma.tokenizer import Tokenizer
from gemmascope_jax.gemma.weights.layout import Stored


@dataclasses.dataclass(frozen=True)
class Weights:
  """An opened source of weights.

  Attributes:
    config: the architecture.
    label: what results call the model.
    find: from a leaf's path ("layer_3/attn/q") to where it lies; raises
      `WeightsFormatError` if it is missing.
    hash: computes the hash of the weights, whatever part of them is loaded.
    tokenizer: opens the tokenizer.
    bos_id: what the source says the model's BOS is; None if it says nothing.
    bytes_read: of tensors, by this process so far; None: not counted.
  """

  config: GemmaConfig
  label: str
  find: Callable[[str], Stored]
  hash: Callable[[], str]
  tokenizer: Callable[[], Tokenizer]
  bos_id: int | None = None
  bytes_read: Callable[[], int] | None = None

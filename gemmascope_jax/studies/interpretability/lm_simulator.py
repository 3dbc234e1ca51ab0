"""Simulation by a language model, all tokens of a context in one pass.

The prompt lists the tokens of a context, each followed by a tab, a placeholder
and a newline. What the model would put in a placeholder's stead is read after
the tab, from the probabilities of the ten digits:

  prediction = sum_d d p(d) / sum_d p(d),  d = 0..9.

So one forward pass predicts a whole context, and no prediction sees another.
The context's tokens stand in the prompt as they are, by id: nothing is cut into
tokens again, and which position belongs to which token is arithmetic.

Letters: S prompts, P positions, D width, C contexts, T tokens in a context.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax import gemma
from gemmascope_jax.gemma.layers import rms_norm
from gemmascope_jax.gemma.model import PRECISION
from gemmascope_jax.studies.interpretability.outcomes import Failure

PLACEHOLDER = "?"
_ROUND = 64  # prompts are padded to a multiple: few compilations

_TASK = (
  "A feature of a neural network fires on some tokens, from 0 (not at all) to 9"
  " (most strongly). Below is what each feature fires on, and for every token"
  " of a text its activation.\n\n"
)
# What it fires on, and parts of a text with their activation. The first ones
# carry the placeholder, so that the model sees numbers come after some.
_EXAMPLES = (
  (
    "names of days of the week",
    (
      ("The ferry leaves on", None),
      (" Tuesday", 9),
      (" and comes back at noon, or on", 0),
      (" Friday", 9),
      (" at one.", 0),
    ),
  ),
  (
    "words of negation",
    (
      ("He had", None),
      (" not", None),
      (" slept,", 0),
      (" nor", 9),
      (" had he eaten", 0),
      (" anything", 3),
      (".", 0),
    ),
  ),
)


class LMSimulator:
  """Predicts activations with a Gemma; see `outcomes.Simulator`.

  Args:
    lm: a `Gemma` with all its layers.
    batch: contexts in a forward pass.

  Raises:
    ValueError: in the model's tokenizer a digit, the tab, the newline or the
      placeholder is not one token.
  """

  def __init__(self, lm: Any, batch: int = 8):
    if batch < 1:
      raise ValueError(f"batch {batch}: expected at least one context")
    self._lm, self._batch = lm, batch
    one = functools.partial(_one_token, lm.tokenizer)
    self._digits = np.array([one(str(digit)) for digit in range(10)], np.int32)
    self._tab, self._newline = one("\t"), one("\n")
    self._placeholder = one(PLACEHOLDER)

  def describe(self) -> dict[str, Any]:
    """See `outcomes.Simulator`."""
    return {
      "kind": "language model, all tokens in one pass",
      "model": self._lm.label,
      "weights": self._lm.weights_hash,
      "dtype": str(jax.tree.leaves(self._lm.params)[0].dtype),
    }

  def prompt(
    self, explanation: str, tokens: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """The prompt of one context.

    Args:
      explanation: what the latent fires on.
      tokens: int [t], the context's tokens that count.

    Returns:
      ids, int32 [P]; where, int [t]: the position of the tab after each token.
    """
    encode = self._lm.tokenizer.encode
    ids = [self._lm.tokenizer.bos_id, *encode(_TASK)]
    for what, parts in _EXAMPLES:
      ids += encode(f"Fires on: {what}\n")
      for text, digit in parts:
        shown = self._placeholder if digit is None else self._digits[digit]
        for token in encode(text):
          ids += [token, self._tab, shown, self._newline]
      ids.append(self._newline)
    ids += encode(f"Fires on: {' '.join(explanation.split())}\n")
    start = len(ids)
    for token in tokens:
      ids += [token, self._tab, self._placeholder, self._newline]
    return np.array(ids, np.int32), start + 1 + 4 * np.arange(len(tokens))

  def simulate(
    self, explanation: Any, tokens: np.ndarray, keep: np.ndarray
  ) -> list[np.ndarray | Failure]:
    """See `outcomes.Simulator`; predictions are from 0 to 9."""
    if not isinstance(explanation, str):
      raise ValueError(
        f"explanation {explanation!r}: the language model reads text only"
      )
    made = [
      self.prompt(explanation, row[kept])
      for row, kept in zip(tokens, keep, strict=True)
    ]
    if not made:
      return []
    length = max(len(ids) for ids, _ in made)
    length += -length % _ROUND
    pad = self._lm.tokenizer.pad_id
    out = []
    for start in range(0, len(made), self._batch):
      part = made[start : start + self._batch]
      ids = np.full((self._batch, length), pad, np.int32)
      real = np.zeros(ids.shape, bool)
      where = np.zeros((self._batch, tokens.shape[1]), np.int32)
      for i, (prompt, positions) in enumerate(part):
        ids[i, : len(prompt)] = prompt
        real[i, : len(prompt)] = True
        where[i, : len(positions)] = positions
      real[:, 0] = True  # rows that fill the batch
      found = np.asarray(
        _expected(
          self._lm.params,
          jnp.asarray(ids),
          jnp.asarray(real),
          jnp.asarray(where),
          jnp.asarray(self._digits),
          config=self._lm.config,
        ),
        np.float64,
      )
      for i, (_, positions) in enumerate(part):
        row = np.zeros(tokens.shape[1])
        row[keep[start + i]] = found[i, : len(positions)]
        out.append(row)
    return out


def _one_token(tokenizer: Any, text: str) -> int:
  ids = tokenizer.encode(text)
  if len(ids) != 1:
    raise ValueError(
      f"the tokenizer makes {len(ids)} tokens of {text!r}: the simulator needs"
      " digits, tab, newline and placeholder to be one token each"
    )
  return int(ids[0])


@functools.partial(jax.jit, static_argnames="config")
def _expected(params, ids, real, where, digits, *, config):
  """Expected digit after the tabs `where` [S, T], float32 [S, T]."""
  out = gemma.forward(config, params, ids, mask=real, logits=False)
  at = jnp.take_along_axis(out.residual, where[:, :, None], axis=1)
  hidden = rms_norm(at, params["final_norm"]["scale"], config.norm_eps)
  # Only ten rows of the unembedding: the other words cancel in the ratio.
  logits = jnp.einsum(
    "std,vd->stv",
    hidden.astype(jnp.float32),
    params["embedder"]["embedding"][digits].astype(jnp.float32),
    precision=PRECISION,
  )
  if config.final_softcap is not None:
    logits = config.final_softcap * jnp.tanh(logits / config.final_softcap)
  values = jnp.arange(len(digits), dtype=jnp.float32)
  return jnp.einsum("std,d->st", jax.nn.softmax(logits, axis=-1), values)

"""What steering does: its effect, and what it costs in fluency.

Of answers that the steered model gave, each a sum over a prompt's answers:

  effect      share of answers that have one of the concept's words; or share
              of the answers' tokens on which a latent fires when the model
              without edits reads the text
  text loss   the loss of the model without edits on the answers, nats a token:
              how odd the text is to it
  repetition  1 - distinct pairs of neighbouring tokens / all pairs: a text that
              goes round in circles soon has a low text loss

And of held-out text, a sum a sequence:

  held-out loss  the steered model's loss on text that it did not write, nats a
              token, whose rise is what the edit does to all its predictions

Letters: S sequences, T tokens, Q prompts.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from gemmascope_jax import gemma
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.steering import activations
from gemmascope_jax.steering.edits import Edit, as_partial, at
from gemmascope_jax.steering.generation import Generated
from gemmascope_jax.studies import splice

Sums = tuple[np.ndarray, np.ndarray]


def has_words(texts: Sequence[str], words: Sequence[str]) -> np.ndarray:
  """Whether each text has one of the words: bool [S].

  Whole words, upper or lower case: "art" is not in "start". A phrase is found
  as it is spelled.

  Raises:
    ValueError: no words, or an empty one.
  """
  if isinstance(words, str) or not words or not all(w.strip() for w in words):
    raise ValueError(
      f"words are {words!r}: expected a list of at least one, none empty"
    )
  spelled = "|".join(re.escape(word.strip()) for word in words)
  pattern = re.compile(rf"(?<!\w)(?:{spelled})(?!\w)", re.IGNORECASE)
  return np.array([bool(pattern.search(text)) for text in texts])


def word_hits(said: Generated, words: Sequence[str], prompts: int) -> Sums:
  """(answers with a word, answers) of each prompt: float64 [Q] each."""
  found = has_words(said.texts, words).astype(np.float64)
  return _by_prompt(found, prompts), _by_prompt(np.ones(len(found)), prompts)


def latent_hits(
  lm,
  sae: SAE,
  latent: int,
  said: Generated,
  policy: TokenPolicy,
  prompts: int,
  *,
  batch: int = 8,
) -> Sums:
  """(tokens said on which the latent fires, tokens said) of each prompt.

  Read by the model without edits, so an edit does not count itself.

  Returns:
    float64 [Q] each; tokens that the policy excludes don't count.
  """
  found = activations.values(
    lm, sae, latent, said.tokens, policy, mask=said.real, batch=batch
  )
  counted = said.new & policy.keep(said.tokens)
  fires = (found[..., 0] > 0) & counted
  return (
    _by_prompt(fires.sum(axis=1), prompts),
    _by_prompt(counted.sum(axis=1), prompts),
  )


def text_losses(
  lm, said: Generated, policy: TokenPolicy, prompts: int, *, batch: int = 8
) -> Sums:
  """(summed loss of the tokens said, tokens) of each prompt: float64 [Q].

  Of the model without edits, which reads each prompt and its answer; what is
  predicted at a position that the policy excludes does not count.
  """
  found = []
  parts = splice.batches(lm.params, said.tokens, batch, policy.pad_id)
  masks = splice.batches(lm.params, said.real, batch, False)
  for part, mask in zip(parts, masks, strict=True):
    found.append(_losses(lm.config, lm.params, part, mask, {}))
  losses = np.concatenate(found)[: len(said.tokens)].astype(np.float64)
  counted = said.new[:, 1:] & policy.keep(said.tokens)[:, :-1]
  total = np.where(counted, losses, 0).sum(axis=1)
  return _by_prompt(total, prompts), _by_prompt(counted.sum(axis=1), prompts)


def repetitions(said: Generated, prompts: int) -> Sums:
  """(pairs of neighbouring tokens that came before, pairs) of each prompt."""
  repeated, pairs = [], []
  for row, start, end in zip(
    said.tokens, said.prompt_lengths, said.lengths, strict=True
  ):
    answer = row[start:end].tolist()
    grams = list(zip(answer, answer[1:], strict=False))
    repeated.append(len(grams) - len(set(grams)))
    pairs.append(len(grams))
  return _by_prompt(repeated, prompts), _by_prompt(pairs, prompts)


def held_out_losses(
  lm,
  tokens: np.ndarray,
  policy: TokenPolicy,
  edits: Mapping[str, Edit],
  *,
  batch: int = 8,
) -> Sums:
  """(summed loss, tokens) of each sequence, under edits: float64 [S].

  Args:
    lm: a `Gemma`.
    tokens: int32 [S, T], text that nobody steered.
    policy: edits act where it keeps a token, and losses count where it says.
    edits: by site.
    batch: sequences a pass.
  """
  found = []
  for part in splice.batches(lm.params, tokens, batch, policy.pad_id):
    keep = policy.keep(part)
    placed = {site: at(edit, keep) for site, edit in edits.items()}
    mask = part != policy.pad_id
    found.append(_losses(lm.config, lm.params, part, mask, placed))
  losses = np.concatenate(found)[: len(tokens)].astype(np.float64)
  counted = policy.keep_loss(tokens)
  return np.where(counted, losses, 0).sum(axis=1), counted.sum(axis=1) * 1.0


def _by_prompt(values: Sequence[float] | np.ndarray, prompts: int):
  """Sums over each prompt's answers, which follow each other."""
  values = np.asarray(values, np.float64)
  return values.reshape(prompts, -1).sum(axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _losses(config, params, tokens, mask, edits):
  return gemma.next_token_losses(
    config,
    params,
    tokens,
    edits={site: as_partial(edit) for site, edit in edits.items()},
    mask=mask,
  )

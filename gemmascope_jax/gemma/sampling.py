"""Sampling: the model goes on with its prompts, token by token.

One pass over the prompts, then one over each new token with the keys and values
of those before it (`kv_cache`), all in one jitted program. A row's randomness
is a function of (seed, the row's number, the token's position) alone, so what
the model says to a prompt depends neither on the batch that the prompt is in
nor on the devices, but for rounding where two words tie.

Letters: S sequences, P tokens of the longest prompt, N new tokens at most, D
width, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax.gemma import kv_cache, sites
from gemmascope_jax.gemma.config import GemmaConfig
from gemmascope_jax.gemma.layers import Precision
from gemmascope_jax.gemma.model import PRECISION, Edit, Params, forward

Array = jax.Array


class Sample(flax.struct.PyTreeNode):
  """Prompts and what the model said to them.

  Attributes:
    tokens: int32 [S, P + N], each row its prompt and then its answer, the stop
      token included, then padding.
    prompt_lengths: int32 [S], tokens of the prompt.
    lengths: int32 [S], tokens of prompt and answer.
    stopped: bool [S], whether the answer ends with a stop token, and not
      because there was no room for more.
  """

  tokens: Array
  prompt_lengths: Array
  lengths: Array
  stopped: Array


def sample(
  config: GemmaConfig,
  params: Params,
  prompts: np.ndarray | Array,
  *,
  mask: np.ndarray | Array | None = None,
  stop_ids: Iterable[int],
  pad_id: int,
  max_new_tokens: int,
  temperature: float = 1.0,
  seed: int = 0,
  rows: Sequence[int] | None = None,
  edits: Mapping[str | sites.Site, Edit] | None = None,
  edited: np.ndarray | Array | None = None,
  unedited_ids: Iterable[int] = (),
  precision: Precision = PRECISION,
) -> Sample:
  """Continues every prompt until it stops or has enough tokens.

  Token i + 1 is drawn from softmax(logits_i / temperature), over the whole
  vocabulary. Compiled once for a shape of prompts and a `max_new_tokens`.

  Args:
    config: the architecture.
    params: all its parameters, on one device or many (`parallel.shard`).
    prompts: int [S, P], each beginning with BOS.
    mask: bool [S, P], True for real tokens; padding may stand on either side,
      and its tokens may be anything. None: all are real. A row without any is
      answered by nothing.
    stop_ids: tokens that end an answer; there may be none.
    pad_id: fills up the result.
    max_new_tokens: N, at least 1.
    temperature: 0: the likeliest word each time.
    seed: of the randomness, 0 to 2^32 - 1.
    rows: the number of each row, which its randomness is a function of; None:
      0 to S - 1. For batches of one set of prompts, the number in the set.
    edits: as in `forward`. An edit sees [S, P, width] at first, the prompts
      padded on the left, and then [S, 1, width] at each new token. A
      `jax.tree_util.Partial` whose arguments hold arrays may be called with
      other arrays without compiling again.
    edited: bool [S, P], the prompts' tokens that edits act on; None: all.
    unedited_ids: of the new tokens, those that edits leave alone.
    precision: of the matrix products.

  Returns:
    See `Sample`.

  Raises:
    ValueError: an empty batch, a mask (or `edited`) of another shape or dtype,
      a prompt and answer that are longer than the model's context, a
      temperature that is negative or not finite, a max_new_tokens below 1, row
      numbers that don't match, a seed out of range, ids outside the vocabulary;
      and what `forward` refuses, missing layers for one.
  """
  prompts = jnp.asarray(prompts)
  mask = jnp.ones(prompts.shape, jnp.bool_) if mask is None else mask
  mask = jnp.asarray(mask)
  stop_ids = sorted(set(int(i) for i in stop_ids))
  unedited_ids = sorted(set(int(i) for i in unedited_ids))
  rows = range(len(prompts)) if rows is None else rows
  _check(config, prompts, mask, max_new_tokens, temperature, seed, rows)
  edited = mask if edited is None else jnp.asarray(edited)
  if edited.shape != prompts.shape or edited.dtype != jnp.bool_:
    raise ValueError(
      f"edited of shape {edited.shape} and dtype {edited.dtype} for prompts of"
      f" shape {prompts.shape}: expected bool of the same shape, True for tokens"
      " that edits act on"
    )
  for id_ in (pad_id, *stop_ids, *unedited_ids):
    if not 0 <= id_ < config.vocab_size:
      raise ValueError(
        f"token id {id_}: {config.name} has ids 0..{config.vocab_size - 1}"
      )
  return _sample(
    config,
    int(max_new_tokens),
    temperature == 0,
    precision,
    params,
    prompts.astype(jnp.int32),
    mask,
    jnp.float32(temperature or 1.0),
    jnp.uint32(seed),
    jnp.asarray(np.asarray(rows, np.uint32)),
    jnp.asarray(np.asarray(stop_ids, np.int32)),
    jnp.int32(pad_id),
    {str(name): _traceable(edit) for name, edit in (edits or {}).items()},
    edited,
    jnp.asarray(np.asarray(unedited_ids, np.int32)),
  )


def _check(config, prompts, mask, new, temperature, seed, rows) -> None:
  if prompts.ndim != 2 or not prompts.size:
    raise ValueError(
      f"prompts of shape {prompts.shape}: expected [sequences, tokens], at"
      " least one of each"
    )
  if mask.shape != prompts.shape or mask.dtype != jnp.bool_:
    raise ValueError(
      f"mask of shape {mask.shape} and dtype {mask.dtype} for prompts of shape"
      f" {prompts.shape}: expected bool of the same shape, True for real tokens"
    )
  if not jnp.issubdtype(prompts.dtype, jnp.integer):
    raise ValueError(f"prompts of dtype {prompts.dtype}: expected token ids")
  if new < 1:
    raise ValueError(f"max_new_tokens is {new}; expected at least 1")
  if prompts.shape[1] + new > config.context:
    raise ValueError(
      f"prompts of {prompts.shape[1]} tokens and max_new_tokens {new}:"
      f" {config.name} is made for {config.context} together; shorten either"
    )
  if not (temperature >= 0 and math.isfinite(temperature)):
    raise ValueError(
      f"temperature is {temperature}; expected a finite number, 0 (always the"
      " likeliest word) or more"
    )
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed is {seed}; expected 0 to 2^32 - 1")
  if len(rows) != len(prompts) or not all(0 <= row < 2**32 for row in rows):
    raise ValueError(
      f"rows: {len(rows)} numbers for {len(prompts)} prompts; expected one each,"
      " 0 to 2^32 - 1"
    )


def _traceable(edit: Edit) -> jax.tree_util.Partial:
  """The edit as a pytree, whose arrays are arguments of the program."""
  if isinstance(edit, jax.tree_util.Partial):
    return edit
  return jax.tree_util.Partial(edit)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _sample(
  config: GemmaConfig,
  new: int,
  greedy: bool,
  precision: Precision,
  params: Params,
  prompts: Array,
  mask: Array,
  temperature: Array,
  seed: Array,
  rows: Array,
  stop_ids: Array,
  pad_id: Array,
  edits: dict[str, Edit],
  edited: Array,
  unedited_ids: Array,
) -> Sample:
  """`sample`, checked."""
  sequences, width = prompts.shape
  # Padding goes to the left, so that all rows grow from the same slot.
  order = jnp.argsort(mask, axis=1, stable=True)
  mask = jnp.take_along_axis(mask, order, axis=1)
  edited = jnp.take_along_axis(edited, order, axis=1)
  prompts = jnp.where(mask, jnp.take_along_axis(prompts, order, axis=1), pad_id)
  lengths = mask.sum(axis=1, dtype=jnp.int32)
  key = jax.random.key(seed, impl="threefry2x32")

  def only_at(edited, edit):
    def some(x):
      new = jnp.asarray(edit(x))
      if new.shape != x.shape:
        return new  # which `forward` refuses
      return jnp.where(edited[:, :, None], new, x)

    return some

  def logits_of(tokens, mask, cache, edited):
    """float32 [S, V] after the last of the tokens, and the cache."""
    out = forward(
      config,
      params,
      tokens,
      edits={name: only_at(edited, edit) for name, edit in edits.items()},
      mask=mask,
      logits=False,
      cache=cache,
      precision=precision,
    )
    last = forward(  # no layers, only the head, and of one position
      config,
      params,
      tokens[:, -1:],
      start=(config.num_layers, out.residual[:, -1:]),
      precision=precision,
    )
    return last.logits[:, 0], out.cache

  def choose(logits, positions):
    if greedy:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.vmap(functools.partial(_draw, key, temperature))(
      rows, positions, logits
    )

  def going(carry):
    count, _, _, _, done = carry
    return (count < new) & ~done.all()

  def step(carry):
    count, cache, answers, lengths, done = carry
    tokens = jax.lax.dynamic_slice_in_dim(answers, count - 1, 1, axis=1)
    edited = ~jnp.isin(tokens, unedited_ids)
    logits, cache = logits_of(tokens, ~done[:, None], cache, edited)
    return (count + 1, cache, *say(count, logits, answers, lengths, done))

  def say(count, logits, answers, lengths, done):
    """Writes the chosen tokens into column `count` of the answers."""
    chosen = jnp.where(done, pad_id, choose(logits, lengths))
    answers = jax.lax.dynamic_update_slice_in_dim(
      answers, chosen[:, None], count, axis=1
    )
    lengths = lengths + ~done
    return answers, lengths, done | jnp.isin(chosen, stop_ids)

  dtype = params["embedder"]["embedding"].dtype
  cache = kv_cache.empty(config, sequences, width + new, dtype)
  logits, cache = logits_of(prompts, mask, cache, edited)
  cache = cache.replace(length=jnp.int32(cache.length))
  answers = jnp.full((sequences, new), pad_id, jnp.int32)
  nothing = lengths == 0
  said = say(0, logits, answers, lengths, nothing)
  _, _, answers, total, done = jax.lax.while_loop(
    going, step, (jnp.int32(1), cache, *said)
  )
  # From padding on the left to padding on the right.
  whole = jnp.concatenate([prompts, answers], axis=1)
  shift = jnp.arange(width + new)[None] + (width - lengths)[:, None]
  tokens = jnp.take_along_axis(
    whole, jnp.minimum(shift, width + new - 1), axis=1
  )
  real = jnp.arange(width + new)[None] < total[:, None]
  return Sample(
    tokens=jnp.where(real, tokens, pad_id),
    prompt_lengths=lengths,
    lengths=total,
    stopped=done & ~nothing,
  )


def _draw(key, temperature, row, position, logits) -> Array:
  """One token of softmax(logits [V] / temperature)."""
  key = jax.random.fold_in(jax.random.fold_in(key, row), position)
  # The default's noise has 23 bits: words rarer than 1 in 10^7, of which a
  # large vocabulary has many, would come too seldom.
  found = jax.random.categorical(key, logits / temperature, mode="high")
  return found.astype(jnp.int32)

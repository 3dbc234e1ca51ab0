"""Sampling against full passes, Hugging Face's `generate`, and the softmax."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax import gemma, parallel
from gemmascope_jax.gemma import sampling

# Windows are 1 to 5 tokens: prompts and answers are far longer.
LENGTHS = (3, 9, 14, 1)
PROMPTS = np.random.default_rng(0).integers(1, 61, (4, 14))
NEW = 11


def _mask(side):
  real = np.arange(14)[None] < np.array(LENGTHS)[:, None]
  return real if side == "right" else real[:, ::-1]


def _padded(side):
  """PROMPTS, the first tokens of each, with padding on a side."""
  rows = [row[:length] for row, length in zip(PROMPTS, LENGTHS, strict=True)]
  filled = np.full((4, 14), 60)  # a word like any other
  filled[_mask(side)] = np.concatenate(rows)
  return filled, rows


def _sample(oracle, prompts, new=NEW, stop_ids=(), **arguments):
  return sampling.sample(
    oracle.config,
    oracle.params,
    prompts,
    max_new_tokens=new,
    stop_ids=stop_ids,
    pad_id=0,
    **arguments,
  )


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens):
  return gemma.forward(config, params, tokens).logits


def test_greedy_is_the_argmax_of_full_passes(oracle):
  prompts, rows = _padded("right")
  found = _sample(oracle, prompts, mask=_mask("right"), temperature=0)
  np.testing.assert_array_equal(found.prompt_lengths, LENGTHS)
  np.testing.assert_array_equal(found.lengths, np.add(LENGTHS, NEW))
  assert not found.stopped.any()
  for row, prompt in enumerate(rows):
    tokens = np.asarray(found.tokens[row])
    end = len(prompt) + NEW
    np.testing.assert_array_equal(tokens[: len(prompt)], prompt)
    assert (tokens[end:] == 0).all()
    # Causal, so that one pass over the whole answer is a pass at each step.
    logits = _logits(oracle.config, oracle.params, tokens[None])[0]
    expected = np.argmax(logits[len(prompt) - 1 : end - 1], axis=-1)
    np.testing.assert_array_equal(tokens[len(prompt) : end], expected)


def test_greedy_is_hugging_faces_generate(oracle):
  prompts, _ = _padded("left")
  mask = _mask("left")
  expected = oracle.generate(prompts, mask, NEW)
  found = _sample(oracle, prompts, mask=mask, temperature=0)
  answers = [
    found.tokens[row, length : length + NEW]
    for row, length in enumerate(LENGTHS)
  ]
  np.testing.assert_array_equal(answers, expected)


CONFIG = dataclasses.replace(
  gemma.preset("gemma-3-270m"),
  name="tiny",
  vocab_size=24,
  width=16,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_width=24,
  window=4,
  layer_pattern=("local", "global"),
  final_softcap=4.0,
  context=40,
)


@functools.cache
def _params():
  shapes = jax.eval_shape(lambda: gemma.init(CONFIG, jax.random.key(0)))
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32),
    shapes,
  )


def _say(prompts, new=6, params=None, **arguments):
  arguments = {"stop_ids": (), "pad_id": 0} | arguments
  return sampling.sample(
    CONFIG,
    _params() if params is None else params,
    np.asarray(prompts),
    max_new_tokens=new,
    **arguments,
  )


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_frequencies_are_the_softmax(temperature):
  from scipy import stats

  prompt, rows = [3, 7, 1], 20_000
  found = np.asarray(
    _say([prompt] * rows, 2, temperature=temperature, seed=5).tokens
  )
  first = np.bincount(found[:, 3]).argmax()
  for drawn, given in (
    (found[:, 3], prompt),
    (found[found[:, 3] == first, 4], [*prompt, first]),
  ):
    logits = gemma.forward(CONFIG, _params(), np.array([given])).logits
    weights = np.exp(np.asarray(logits[0, -1], np.float64) / temperature)
    expected = weights / weights.sum() * len(drawn)
    counts = np.bincount(drawn, minlength=CONFIG.vocab_size)
    assert expected.min() > 5  # what the test's distribution relies on
    assert stats.chisquare(counts, expected).pvalue > 0.01


@pytest.mark.slow
def test_rare_words_of_a_large_vocabulary_come_as_often_as_they_should():
  # 262,143 words share 2%: with 23 bits of noise 7 of 800 would be theirs.
  words, draws = 1 << 18, 800
  rest = np.log(0.02 / 0.98 / (words - 1))
  logits = jnp.full(words, rest, jnp.float32).at[0].set(0.0)
  key = jax.random.key(0, impl="threefry2x32")
  draw = lambda row: sampling._draw(key, 1.0, row, 9, logits)
  every = jax.jit(
    functools.partial(jax.lax.map, draw),
    # Unlike other tests this one computes, so it is compiled for speed.
    compiler_options={"xla_backend_optimization_level": 3},
  )
  rare = np.asarray(every(jnp.arange(draws))) > 0
  assert 11 <= rare.sum() <= 24  # 16 expected, deviation 4


def test_a_row_alone_in_another_place_and_padded_otherwise_says_the_same():
  rng = np.random.default_rng(2)
  prompts = rng.integers(1, 24, (6, 9))
  lengths = np.array([9, 4, 2, 7, 9, 1])
  mask = np.arange(9)[None] < lengths[:, None]
  together = _say(prompts, mask=mask, seed=3)
  for row in (0, 1, 5):
    alone = _say(prompts[[row], : lengths[row]], seed=3, rows=[row])
    end = lengths[row] + 6
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[row, :end])
  turned = _say(
    prompts[::-1, ::-1], mask=mask[::-1, ::-1], seed=3, rows=range(6)[::-1]
  )
  again = _say(prompts[:, ::-1], mask=mask[:, ::-1], seed=3)
  np.testing.assert_array_equal(turned.tokens[::-1], again.tokens)


def test_seeds_and_rows_differ():
  same = [[3, 7, 1]] * 8
  found = np.asarray(_say(same, seed=0).tokens)
  assert len({tuple(row) for row in found}) == 8
  other = np.asarray(_say(same, seed=1).tokens)
  assert not (found == other).all(axis=1).any()
  np.testing.assert_array_equal(found, _say(same, seed=0).tokens)


def test_an_answer_ends_with_its_first_stop_token():
  prompts = np.random.default_rng(4).integers(1, 24, (40, 3))
  free = np.asarray(_say(prompts, 12, pad_id=23).tokens)
  stops = (5, 9)
  found = _say(prompts, 12, stop_ids=stops, pad_id=23)
  where = [np.flatnonzero(np.isin(row[3:], stops)) for row in free]
  assert 0 < sum(len(each) > 0 for each in where) < 40
  for row, at in enumerate(where):
    end = 4 + at[0] if len(at) else 15
    assert found.stopped[row] == (len(at) > 0)
    assert found.lengths[row] == end
    np.testing.assert_array_equal(found.tokens[row, :end], free[row, :end])
    assert (found.tokens[row, end:] == 23).all()


def test_padding_alone_is_answered_by_nothing():
  mask = np.array([[True] * 3, [False] * 3])
  found = _say([[3, 7, 1]] * 2, mask=mask, stop_ids=(5,))
  assert found.lengths.tolist()[1] == 0 and found.lengths[0] > 3
  assert not found.stopped[1] and (found.tokens[1] == 0).all()


def test_edits_act_at_every_token():
  direction = jnp.asarray(np.random.default_rng(6).normal(size=16), jnp.float32)
  shapes = []

  def steer(direction, x):
    shapes.append(x.shape)
    return x + direction[None, None]

  edit = lambda size: {
    "res.0": jax.tree_util.Partial(steer, size * direction),
  }
  prompts = np.random.default_rng(7).integers(1, 24, (3, 4))
  plain = _say(prompts, temperature=0).tokens
  for size in (0.0, 3.0, -3.0):
    found = np.asarray(_say(prompts, temperature=0, edits=edit(size)).tokens)
    logits = gemma.forward(
      CONFIG,
      _params(),
      found,
      edits={"res.0": lambda x, size=size: x + size * direction[None, None]},
    ).logits
    expected = np.argmax(logits[:, 3:-1], axis=-1)
    np.testing.assert_array_equal(found[:, 4:], expected)
    assert (found == plain).all() == (size == 0)
  # Compiled once for all sizes: the program was traced for the first alone.
  assert set(shapes) == {(3, 4, 16), (3, 1, 16)} and len(shapes) == 2


def test_edits_leave_chosen_tokens_alone():
  direction = jnp.asarray(np.random.default_rng(6).normal(size=16), jnp.float32)
  edits = {"res.0": lambda x: x + 3.0 * direction[None, None]}
  prompts = np.random.default_rng(7).integers(1, 24, (3, 4))
  mask = np.array([[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0]], bool)
  edited = np.array([[0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]], bool)
  spared = range(1, 24, 2)
  found = _say(
    prompts,
    12,
    mask=mask,
    temperature=0,
    edits=edits,
    edited=edited,
    unedited_ids=spared,
  )
  tokens = np.asarray(found.tokens)
  place = np.arange(tokens.shape[1])[None]
  start, end = (
    np.asarray(x)[:, None] for x in (found.prompt_lengths, found.lengths)
  )
  where = ~np.isin(tokens, spared)
  for row in range(3):
    where[row, : start[row, 0]] = edited[row][mask[row]]
  said = (place >= start) & (place < end)
  assert 0 < where[said].sum() < said.sum()

  def some(x):
    return jnp.where(where[..., None], edits["res.0"](x), x)

  # Causal, and padding stands behind: one pass is a pass at each step.
  logits = gemma.forward(CONFIG, _params(), tokens, edits={"res.0": some})
  likeliest = np.argmax(logits.logits, axis=-1)
  np.testing.assert_array_equal(
    tokens[:, 1:][said[:, 1:]], likeliest[:, :-1][said[:, 1:]]
  )


@pytest.mark.parametrize("axes", [{"data": 2, "model": 4}, {"model": 2}])
def test_the_same_on_a_mesh(axes):
  mesh = parallel.make_mesh(axes)
  prompts = np.random.default_rng(8).integers(1, 24, (4, 5))
  mask = np.arange(5)[None] < np.array([[5], [2], [4], [5]])
  expected = _say(prompts, mask=mask)
  rows = jax.sharding.PartitionSpec("data" if "data" in axes else None)
  put = lambda x: jax.device_put(x, jax.NamedSharding(mesh, rows))
  params = parallel.shard(_params(), mesh)
  found = _say(put(prompts), mask=put(mask), params=params)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_bfloat16_runs():
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), _params())
  found = _say([[3, 7, 1]], params=half, temperature=0)
  assert found.lengths.tolist() == [9]


@pytest.mark.parametrize(
  "change, message",
  [
    ({"new": 0}, "max_new_tokens is 0; expected at least 1"),
    ({"new": 38}, r"prompts of 3 tokens .* 38: tiny is made for 40 together"),
    ({"temperature": -0.1}, "temperature is -0.1; expected a finite number"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"seed": -1}, r"seed is -1; expected 0 to 2\^32 - 1"),
    ({"rows": [0, 1]}, "rows: 2 numbers for 1 prompts"),
    ({"stop_ids": [24]}, r"token id 24: tiny has ids 0\.\.23"),
    ({"pad_id": -1}, "token id -1"),
    ({"mask": np.ones((1, 2), bool)}, r"mask of shape \(1, 2\)"),
    ({"mask": np.ones((1, 3), int)}, "dtype int32 .* expected bool"),
    ({"edited": np.ones((1, 2), bool)}, r"edited of shape \(1, 2\)"),
    (
      {"edited": np.ones((1, 3), int)},
      "edited .* dtype int32 .* expected bool",
    ),
    ({"unedited_ids": [24]}, r"token id 24: tiny has ids 0\.\.23"),
    ({"prompts": np.zeros((0, 3), int)}, r"shape \(0, 3\): expected"),
    ({"prompts": [[0.5]]}, "dtype float32: expected token ids"),
    ({"edits": {"res.9": jnp.tanh}}, r"site res.9: tiny has layers 0..1"),
  ],
)
def test_errors(change, message):
  with pytest.raises(ValueError, match=message):
    _say(**({"prompts": [[3, 7, 1]]} | change))


def test_missing_layers():
  params = {k: v for k, v in _params().items() if k != "layer_1"}
  with pytest.raises(ValueError, match="layer_1 missing; load more layers"):
    _say([[3, 7, 1]], params=params)

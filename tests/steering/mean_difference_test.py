"""Mean differences, typical maxima and contrast sets against plain NumPy."""

import jax
import numpy as np
import pytest

from gemmascope_jax import gemma, steering
from gemmascope_jax.steering import activations, edits
from tests.steering import planted

LM, SAE, SITE = planted.lm(), planted.sae(), planted.SITE
POSITIVE = ["Paris is a city", "Paris Paris", "people of Paris sing", "light"]
NEGATIVE = ["rain", "wind snow stones birds trees", "old wine", "far near red"]


@jax.jit
def _acts(params, tokens):
  out = gemma.forward(LM.config, params, tokens, taps=(SITE,))
  return out.acts[SITE]


def _rows(texts):
  """float64 activations of each text alone, without BOS."""
  found = []
  for text in texts:
    tokens = np.zeros((1, 8), int)
    ids = [2, *LM.tokenizer.encode(text)]
    tokens[0, : len(ids)] = ids
    found.append(np.float64(_acts(LM.params, tokens))[0, 1 : len(ids)])
  return found


def _encoded(texts):
  return steering.encode(LM, texts)[0]


def test_it_is_numpys():
  sets = [_rows(POSITIVE), _rows(NEGATIVE)]
  found = steering.mean_difference(
    LM, SITE, _encoded(POSITIVE), _encoded(NEGATIVE), planted.POLICY, batch=3
  )
  means = [np.concatenate(rows).mean(axis=0) for rows in sets]
  np.testing.assert_allclose(found.vector, means[0] - means[1], atol=1e-6)
  squares = 0
  for rows, mean in zip(sets, means, strict=True):
    total = sum(map(len, rows))
    off = [(row - mean).sum(axis=0) for row in rows]
    squares = squares + 4 / 3 * np.square(off).sum(axis=0) / total**2
  np.testing.assert_allclose(found.stderr, np.sqrt(squares), rtol=1e-5)
  assert (found.positive, found.negative, found.tokens) == (4, 4, (11, 11))
  np.testing.assert_allclose(found.norm, np.linalg.norm(means[0] - means[1]))
  swapped = steering.mean_difference(
    LM, SITE, _encoded(NEGATIVE), _encoded(POSITIVE), planted.POLICY, batch=3
  )
  np.testing.assert_allclose(swapped.vector, -found.vector, atol=1e-6)
  assert found.norm > found.noise > 0


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"positive": np.zeros((0, 4), int)}, "0 positive texts have a token"),
    ({"negative": np.array([[2, 5, 0], [2, 0, 0]])}, "1 negative texts have"),
    ({"negative": np.zeros((2, 3))}, r"negative texts .*float64: expected"),
    ({"site": "res.9"}, r"site res.9: gemma-words has layers 0\.\.2"),
  ],
)
def test_errors(change, message):
  given = {"site": SITE, "positive": _encoded(POSITIVE)}
  given |= {"negative": _encoded(NEGATIVE), "policy": planted.POLICY} | change
  with pytest.raises(ValueError, match=message):
    steering.mean_difference(LM, **given)


def test_values_and_typical_maxima():
  tokens = _encoded(POSITIVE)
  found = activations.values(LM, SAE, [5, 2], tokens, planted.POLICY, batch=3)
  assert found.shape == (4, 8, 2)
  p = jax.tree.map(np.float64, SAE.params)
  for row, x in zip(found, _rows(POSITIVE), strict=True):
    pre = (x @ p.w_enc + p.b_enc)[:, [5, 2]]
    f = np.where(pre > p.threshold[[5, 2]], pre, 0)
    np.testing.assert_allclose(row[1 : 1 + len(x)], f, rtol=1e-5, atol=1e-5)
    assert not row[0].any() and not row[1 + len(x) :].any()
  given = np.zeros((4, 3, 1))
  given[:, 1, 0] = [0, 7, 1, 3]
  given[:, 2, 0] = [0, 2, 0.5, 4]
  assert activations.typical_maxima(given).tolist() == [4.0]
  with pytest.raises(ValueError, match="number 1 .* none of the 12 tokens"):
    activations.typical_maxima(np.concatenate([given, 0 * given], axis=-1))
  with pytest.raises(ValueError, match="an unnamed site: expected one"):
    activations.values(LM, planted.sae(site=None), 5, tokens, planted.POLICY)


def test_contrast_sets():
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 30, (6, 12)).astype(np.int32)
  tokens[:, 0] = 2
  tokens[3, 5:] = 0  # padding: only its first window counts
  values = np.zeros((6, 12))
  values[0, 6], values[2, 3], values[3, 2], values[3, 6] = 2, 5, 1, 9
  positive, negative = steering.contrast(
    tokens, values, planted.POLICY, bos_id=2, texts=4, window=4
  )
  # Windows: tokens 1-4 and 5-8 of each row; the strongest first.
  expected = [tokens[2, 1:5], tokens[0, 5:9], tokens[3, 1:5]]
  np.testing.assert_array_equal(positive[:, 1:], expected)
  assert (positive[:, 0] == 2).all() and (negative[:, 0] == 2).all()
  silent = {tuple(t[a : a + 4]) for t in tokens for a in (1, 5)}
  silent -= {tuple(row) for row in expected} | {tuple(tokens[3, 5:9])}
  assert {tuple(row[1:]) for row in negative} <= silent and len(negative) == 4
  for change, message in (
    ({"values": 0 * values}, "0 windows of 4 .* latent fires, of 11"),
    ({"values": values + 1}, "0 windows .* does not fire"),
    ({"values": values[1:]}, r"shape \(5, 12\) for tokens of shape \(6, 12\)"),
    ({"texts": 1}, "1 texts of 4 tokens: expected at least 2"),
    ({"window": 12}, "4 texts of 12 tokens: .* of 1 to 11"),
  ):
    given = {"tokens": tokens, "values": values, "policy": planted.POLICY}
    given |= {"bos_id": 2, "texts": 4, "window": 4} | change
    with pytest.raises(ValueError, match=message):
      steering.contrast(**given)


def test_a_reader_is_as_small_as_it_can_be():
  reader, where = edits.reader(SAE, [7, 5])
  assert reader.width == 2 and where.tolist() == [0, 1]

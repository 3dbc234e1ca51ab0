import numpy as np
import pytest

from gemmascope_jax.studies.interpretability.contexts import (
  Contexts,
  Design,
  Sample,
)


def _contexts(values, keep=None):
  values = np.array(values, np.float32)
  keep = np.ones(values.shape, bool) if keep is None else np.array(keep)
  return Contexts(np.zeros(values.shape, np.int32), values, keep)


def test_quantised_counts_from_nothing_to_the_largest_of_all():
  keep = np.array([[1, 1, 1], [1, 1, 0]], bool)
  found = _contexts([[0, 0.001, 2], [4, 1, 8]], keep)
  assert found.quantised().tolist() == [[0, 1, 5], [10, 2, 0]]
  assert found.quantised(2).tolist() == [[0, 1, 1], [2, 1, 0]]
  assert found.peaks().tolist() == [2, 4]
  assert not _contexts([[0, 0]]).quantised().any()


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (dict(keep=np.ones((2, 2), bool)), r"\(2, 3\), \(2, 3\), \(2, 2\)"),
    (dict(keep=np.ones((2, 3))), "keep of float64"),
    (dict(tokens=np.ones((2, 3))), "tokens of dtype float64"),
    (dict(activations=np.full((2, 3), -1.0)), "negative or not finite"),
    (dict(activations=np.full((2, 3), np.nan)), "negative or not finite"),
  ],
)
def test_what_makes_no_sense_is_refused(change, says):
  good = dict(
    tokens=np.ones((2, 3), int),
    activations=np.ones((2, 3)),
    keep=np.ones((2, 3), bool),
  )
  assert len(Contexts(**good)) == 2
  with pytest.raises(ValueError, match=says):
    Contexts(**good | change)


def test_a_design_without_contexts_is_refused():
  with pytest.raises(ValueError, match="quantile 0: expected at least 1"):
    Design(quantile=0)
  held_out = _contexts([[1, 0]])
  with pytest.raises(ValueError, match="latent 3: 2 kinds for 1 held-out"):
    Sample(3, 0.1, held_out, held_out, ("top", "random"))

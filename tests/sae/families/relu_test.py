"""The ReLU baseline against its formula."""

import numpy as np
import pytest

from gemmascope_jax.sae.config import Recipe
from tests.sae.families import cases


def test_loss_and_gradients_are_those_of_the_formula():
  params, x = cases.dictionary_params(), cases.rows(rows=16)

  def formula(params, held):
    del held
    f = np.maximum(cases.linear(params, x) + params["b_enc"], 0)
    return cases.squared(params, f, x) + 0.03 * f.sum(axis=1).mean()

  recipe = Recipe(family="relu", width=32)
  aux = cases.check_loss(recipe, params, x, formula, coefficient=0.03)
  active = cases.linear(params, x) + params["b_enc"] > 0
  np.testing.assert_array_equal(aux["fired"], active.sum(axis=0))
  assert float(aux["l0"]) == pytest.approx(active.sum(axis=1).mean())

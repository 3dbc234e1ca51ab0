"""What families share: nested dictionaries, and decoders that stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.sae import sweep
from gemmascope_jax.sae.config import FAMILIES, Recipe
from gemmascope_jax.sae.train_step import Knobs
from tests.sae.families import cases


def _nested(params, values, x, prefixes):
  """Mean squared error of each prefix of the dictionary, averaged."""
  errors = []
  for m in (*prefixes, 32):
    error = values[:, :m] @ params["w_dec"][:m] + params["b_dec"] - x
    errors.append(np.square(error).sum(axis=1).mean())
  return np.mean(errors)


def test_matryoshka_batch_topk_is_the_formula():
  params, x = (
    cases.dictionary_params(running_threshold=0.0),
    cases.rows(rows=16),
  )

  def latents(params):
    pre = cases.linear(params, x) + params["b_enc"]
    return np.where(pre >= np.sort(pre.ravel())[-80], np.maximum(pre, 0), 0)

  def formula(params, held):
    del held
    return _nested(params, latents(params), x, (4, 20))

  recipe = Recipe(family="batch_topk", width=32, k=5, prefixes=(4, 20))
  aux = cases.check_loss(recipe, params, x, formula)
  assert float(aux["squared_error"]) == pytest.approx(
    cases.squared(params, latents(params), x)
  )


def test_matryoshka_jumprelu_is_the_formula():
  """Thresholds apart: none is within reach of the estimator's kernel."""
  params, x = cases.params(), cases.rows(rows=16)

  def formula(params, held):
    pre = cases.linear(params, x) + params["b_enc"]
    values = pre * (pre > held["threshold"])
    l0 = (values > 0).sum(axis=1).mean()
    return _nested(params, values, x, (4, 20)) + 0.03 * l0

  recipe = Recipe(width=32, prefixes=(4, 20), bandwidth=1e-9)
  cases.check_loss(recipe, params, x, formula, coefficient=0.03)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_decoder_stays_while_the_rest_learns(family):
  recipe = Recipe(
    family=family,
    width=32,
    batch_size=64,
    steps=30,
    k=4,
    frozen=("w_dec",),
    learning_rate=1e-2,
    learning_rate_warmup_steps=0,
    threshold_init=0.3,
    bandwidth=0.2,
  )
  x = jnp.asarray(cases.rows(rows=64), jnp.float32)
  state = sweep.init_fn(recipe)(jax.random.key(0), cases.sample(x))
  before = jax.tree.map(np.asarray, state.params)
  errors = []
  for _ in range(recipe.steps):
    state, values = sweep.step_fn(recipe)(state, x, x, Knobs.of(recipe))
    errors.append(float(values["squared_error"]))
  for name, value in state.params.items():
    assert np.array_equal(value, before[name]) == (name == "w_dec"), name
  assert errors[-1] < 0.8 * errors[0]


def test_frozen_refuses_what_is_no_parameter():
  recipe = Recipe(width=32, frozen=("decoder",))
  with pytest.raises(ValueError, match="frozen names decoder; the parameters"):
    sweep.init_fn(recipe)(jax.random.key(0), cases.sample(cases.rows()))

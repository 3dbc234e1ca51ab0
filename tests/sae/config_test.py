"""Recipes refuse what makes no sense, and say why."""

import numpy as np
import pytest

from gemmascope_jax.sae.config import Recipe


@pytest.mark.parametrize(
  ("field", "value", "says"),
  [
    ("family", "jumprleu", "expected one of jumprelu"),
    ("width", 0, "must be positive"),
    ("bandwidth", 0.0, "trains no threshold"),
    ("sparsity_coefficient", -1.0, "must not be negative"),
    ("bias_init", "median", "expected one of zeros, mean"),
    ("prefixes", (64, 32), "expected increasing widths below"),
    ("prefixes", (2**14,), "expected increasing widths below"),
    ("frequency_scale", 0.0, "must be positive"),
    ("width", 32.0, "expected a whole number"),
    ("width", "64", "expected a whole number"),
    ("seed", True, "expected a whole number"),
    ("k", 5.5, "expected a whole number"),
    ("learning_rate", float("inf"), "expected a finite number"),
    ("bandwidth", float("nan"), "expected a finite number"),
    ("threshold_init_l0", "80", "expected a finite number"),
    ("skip", 1, "expected True or False"),
    ("prefixes", 16, "expected a tuple"),
    ("prefixes", (3.5,), "expected a whole number"),
    ("frozen", "w_dec", "expected a tuple, as"),
  ],
)
def test_recipe_refuses_nonsense(field, value, says):
  with pytest.raises(ValueError, match=f"{field} is .*{says}"):
    Recipe.from_dict({field: value})


def test_a_target_is_below_the_width():
  with pytest.raises(ValueError, match="target_l0 is 64.0; expected less"):
    Recipe(width=64, sparsity_loss="l0_target", target_l0=64.0)


def test_numbers_of_numpy_and_lists_of_json_are_taken():
  found = Recipe(width=np.int64(64), bandwidth=np.float32(0.5), prefixes=[8])
  assert found == Recipe(width=64, bandwidth=0.5, prefixes=(8,))
  assert type(found.width) is int and type(found.bandwidth) is float


def test_recipe_refuses_unknown_keys():
  with pytest.raises(ValueError, match="unknown recipe key lambda; known"):
    Recipe.from_dict({"lambda": 1e-4})

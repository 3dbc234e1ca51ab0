"""Recipes refuse what makes no sense, and say why."""

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
  ],
)
def test_recipe_refuses_nonsense(field, value, says):
  with pytest.raises(ValueError, match=f"{field} is .*{says}"):
    Recipe.from_dict({field: value})


def test_recipe_refuses_unknown_keys():
  with pytest.raises(ValueError, match="unknown recipe key lambda; known"):
    Recipe.from_dict({"lambda": 1e-4})

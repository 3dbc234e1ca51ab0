"""What a config's members are."""

import pytest

from configs import default, quickstart
from gemmascope_jax.experiment import settings
from gemmascope_jax.sae.config import Recipe


def _config(**train):
  config = default.get_config()
  config.train.update(train)
  return config


def _recipes(**train):
  return settings.recipes(_config(**train))


def test_a_member_for_each_sparsity_coefficient():
  found = _recipes(sparsity_coefficients=(1e-3, 2e-3))
  assert found == [
    Recipe(sparsity_coefficient=1e-3),
    Recipe(sparsity_coefficient=2e-3),
  ]


def test_a_member_for_each_target_instead():
  found = _recipes(target_l0s=(20, 80), target_l0_coefficient=3e-2)
  assert found == [
    Recipe(
      sparsity_loss="l0_target", sparsity_coefficient=3e-2, target_l0=target
    )
    for target in (20, 80)
  ]


def test_members_that_differ_in_anything_come_after():
  found = _recipes(
    sparsity_coefficients=(1e-3,),
    members=(
      {},
      {"width": 2**15, "sparsity_coefficient": 2e-3},
      {"family": "topk", "k": 7, "seed": 3, "prefixes": (64, 256)},
      {"threshold_init_l0": 30.0},
      {"threshold_init_l0": 0.0, "steps": 5},
    ),
  )
  assert found == [
    Recipe(sparsity_coefficient=1e-3),
    Recipe(),
    Recipe(width=2**15, sparsity_coefficient=2e-3),
    Recipe(family="topk", k=7, seed=3, prefixes=(64, 256)),
    Recipe(threshold_init_l0=30.0),
    Recipe(steps=5),
  ]


def test_without_any_there_is_the_recipe_itself():
  config = _config(sparsity_coefficients=())
  config.recipe.sparsity_coefficient = 5e-4
  assert settings.recipes(config) == [Recipe(sparsity_coefficient=5e-4)]


def test_top_k_has_no_lambda():
  config = _config(sparsity_coefficients=(1e-3, 2e-3))
  config.recipe.family = "topk"
  with pytest.raises(ValueError, match="sparsity is k, not lambda: expected"):
    settings.check(config)
  config.train.sparsity_coefficients = ()
  config.train.members = ({"k": 20}, {"k": 50})
  assert settings.recipes(config) == [
    Recipe(family="topk", k=20),
    Recipe(family="topk", k=50),
  ]


def test_members_cover_the_tokens():
  (recipe,) = _recipes(sparsity_coefficients=(1e-3,), tokens=4097)
  assert recipe.steps == 2


def test_the_quickstarts_members():
  config = quickstart.get_config()
  found = settings.recipes(config)
  coefficients = tuple(r.sparsity_coefficient for r in found)
  assert coefficients == config.train.sparsity_coefficients
  for recipe in found:
    assert recipe.steps * recipe.batch_size == config.train.tokens
    assert recipe.frozen == ("b_dec",) and recipe.threshold_init_l0 == 80.0


@pytest.mark.parametrize(
  ("section", "change", "says"),
  [
    ("train", {"tokens": 0}, "train.tokens is 0; expected at least 1"),
    ("recipe", {"batch_size": 0}, "recipe.batch_size is 0; expected at"),
    ("recipe", {"steps": 5}, "recipe.steps is 5, but train.tokens"),
  ],
)
def test_settings_that_count_steps(section, change, says):
  config = _config()
  with config.unlocked():
    config[section].update(change)
  with pytest.raises(ValueError, match=says):
    settings.recipes(config)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("sparsity_coefficients", 3e-4),
    ("members", {"k": 2}),
    ("loggers", "wandb"),
  ],
)
def test_what_is_a_list_is_not_a_single_one(name, value):
  config = _config()
  with config.ignore_type():
    config.train[name] = value
  with pytest.raises(
    ValueError, match=rf"(?s)train.{name} is .*expected a tuple"
  ):
    settings.recipes(config)


@pytest.mark.parametrize(
  ("members", "says"),
  [
    (({}, {"widht": 4096}), r"members\[1\] .* unknown recipe key widht; known"),
    (({"width": 0},), r"members\[0\] is {'width': 0}: recipe.width is 0"),
    (({"family": "tok"},), r"members\[0\] .* recipe.family is 'tok'; expected"),
    (({"width": "4096"},), r"members\[0\] is {'width': '4096'}"),
    (("width",), r"members\[0\] is 'width'; expected settings .* a comma"),
  ],
)
def test_members_that_make_no_sense_are_named(members, says):
  with pytest.raises(ValueError, match=says):
    settings.check(_config(members=members))


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (
      {"mesh.data": 3},
      "batch_size is 1024; expected a multiple of mesh.data, 3",
    ),
    ({"lm.dtype": "foo"}, "lm.dtype is 'foo'; expected one of float32"),
    (
      {"lm.source": "google/gemma-2-2b", "train.site": "res.26"},
      "site res.26: gemma-2-2b has layers 0..25",
    ),
  ],
)
def test_what_could_not_be_carried_out_is_refused_at_once(change, says):
  config = quickstart.get_config()
  config.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=says):
    settings.check(config)

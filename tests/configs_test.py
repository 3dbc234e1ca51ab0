"""Every preset builds, passes, and says what the papers' tables say."""

import collections
import dataclasses
import importlib

import pytest

from configs import baselines, default, gemma_scope, gemma_scope_2
from gemmascope_jax.experiment import settings
from gemmascope_jax.gemma import sites
from gemmascope_jax.gemma.config import preset
from gemmascope_jax.sae.config import FAMILIES, Recipe

GEMMA_2 = {
  "gemma-2-2b": "gemma2_2b",
  "gemma-2-9b": "gemma2_9b",
  "gemma-2-27b": "gemma2_27b",
  "gemma-2-9b-it": "gemma2_9b_it",
}
GEMMA_3 = {
  f"gemma-3-{size}": f"gemma3_{size}"
  for size in ("270m", "1b", "4b", "12b", "27b")
}


def _file(name):
  return importlib.import_module(f"configs.{name}")


def test_the_default_lists_every_setting_of_a_recipe():
  listed = set(default.get_config().recipe.to_dict())
  fields = {field.name for field in dataclasses.fields(Recipe)}
  assert fields - listed == {"steps"}  # train.tokens says how many
  assert listed <= fields


def test_the_default_recipe_is_the_class_default():
  config = default.get_config()
  config.train.sparsity_coefficients = ()
  assert settings.recipes(config) == [Recipe()]


# Table 1, counted from the paper by hand: SAEs of a site kind and width.
COUNTS = {
  "gemma-2-2b": {
    **{(kind, 2**14): 26 for kind in ("att", "mlp", "res", "transcoder")},
    **{(kind, 2**16): 26 for kind in ("att", "mlp", "res")},
    **{("res", 2**n): 1 for n in (15, 17, 18, 19)},
    ("res", 2**20): 3,
  },
  "gemma-2-9b": {
    **{(k, 2**n): 42 for k in ("att", "mlp", "res") for n in (14, 17)},
    **{("res", 2**n): 1 for n in (15, 16, 18, 19)},
    ("res", 2**20): 3,
  },
  "gemma-2-27b": {("res", 2**17): 3},
  "gemma-2-9b-it": {("res", 2**14): 3, ("res", 2**17): 3},
}


@pytest.mark.parametrize("model", GEMMA_2)
def test_table_1_is_the_papers(model):
  entries = gemma_scope.table_1(model)
  counts = collections.Counter((e.kind, e.width) for e in entries)
  assert counts == COUNTS[model]
  assert len({entry.name for entry in entries}) == len(entries)
  layers = {
    (e.width, e.layer) for e in entries if e.kind == "res" and e.width > 2**17
  }
  chosen = {
    "gemma-2-2b": {(2**18, 12), (2**19, 12)}
    | {(2**20, layer) for layer in (5, 12, 19)},
    "gemma-2-9b": {(2**18, 20), (2**19, 20)}
    | {(2**20, layer) for layer in (9, 20, 31)},
  }
  assert layers == chosen.get(model, set())
  steps = {2**14: 976_563, 2**20: 3_906_250}
  for entry in entries:
    assert -(-entry.tokens // 4096) == steps.get(entry.width, 1_953_125)


@pytest.mark.parametrize("model", GEMMA_2)
def test_every_entry_of_table_1_is_a_config(model):
  architecture = preset(model)
  get_config = _file(GEMMA_2[model]).get_config
  assert get_config().lm.source == f"google/{model}"
  for entry in gemma_scope.table_1(model):
    config = get_config(entry.name)
    settings.check(config)
    recipes = settings.recipes(config)
    assert len(recipes) == 3
    for recipe in recipes:
      changed = {"width": entry.width, "steps": -(-entry.tokens // 4096)}
      changed["sparsity_coefficient"] = recipe.sparsity_coefficient
      if entry.kind == "transcoder":
        changed |= {"encoder_init": "he_uniform", "pre_encoder_bias": False}
      assert recipe == dataclasses.replace(Recipe(), **changed)
    for site in config.harvest.sites:
      sites.check(architecture, site)
    if entry.kind == "transcoder":
      assert config.train.site == f"mlp_in.{entry.layer}"
      assert config.train.target_site == f"mlp.{entry.layer}"
    else:
      assert config.train.site == f"{entry.kind}.{entry.layer}"
      assert config.train.target_site == ""
    assert config.harvest.rows == config.train.tokens == entry.tokens
    assert config.data.chat == (model == "gemma-2-9b-it")


@pytest.mark.parametrize(
  ("which", "says"),
  [
    ("res.19,32k", "of res.19,16k res.19,131k. Take the nearest"),
    ("res.42,16k", "'res.42,16k' .* of att... mlp... res..."),
    ("transcoder.3,16k", "gemma-2-9b has no 'transcoder.3,16k'"),
  ],
)
def test_what_was_not_trained_is_refused(which, says):
  with pytest.raises(ValueError, match=says):
    _file("gemma2_9b").get_config(which)


@pytest.mark.parametrize("model", GEMMA_3)
def test_gemma_scope_2s_entries_are_configs(model):
  get_config = _file(GEMMA_3[model]).get_config
  architecture = preset(model)
  entries = gemma_scope_2.table_1(model)
  counts = collections.Counter(e.width for e in entries)
  assert counts == {
    2**14: 5 * architecture.num_layers,
    2**16: 5 * 4 + 1,
    2**18: 5 * architecture.num_layers + 1,
    2**19: 1,
    2**20: 4 + 1,
  }
  assert len({entry.name for entry in entries}) == len(entries)
  for entry in entries:
    config = get_config(entry.name)
    settings.check(config)
    for recipe in settings.recipes(config):
      assert recipe.sparsity_loss == "l0_target"
      assert recipe.sparsity_warmup_steps == 50_000
      assert recipe.width == entry.width and recipe.learning_rate == 7e-5
      assert recipe.frequency_coefficient > 0
      is_sae = config.train.site.split(".")[0] != "mlp_in" and (
        "+" not in config.train.site
      )
      assert bool(recipe.prefixes) == is_sae
    for site in config.harvest.sites:
      sites.check(architecture, site)
  get_config()


def test_gemma_scope_2s_kinds():
  get_config = _file("gemma3_1b").get_config
  crosscoder = get_config("crosscoder,524k")
  assert crosscoder.train.site == "res.7+res.13+res.17+res.22"
  assert crosscoder.train.target_l0s == (50, 150)
  assert crosscoder.recipe.width == 2**19
  plain, skip = map(get_config, ("transcoder.3,16k", "skip_transcoder.3,16k"))
  assert (plain.recipe.skip, skip.recipe.skip) == (False, True)
  assert plain.recipe.normalise == skip.recipe.normalise == "each"
  assert plain.train.target_site == skip.train.target_site == "mlp.3"
  for layer, depth in zip((7, 13, 17, 22), (25, 50, 65, 85), strict=True):
    assert layer / 26 == pytest.approx(depth / 100, abs=0.03)


@pytest.mark.parametrize(
  ("model", "layer", "targets"),
  [  # of the releases' names
    ("gemma-3-4b", 0, (10, 60)),
    ("gemma-3-4b", 1, (10, 65)),
    ("gemma-3-4b", 10, (18, 112)),
    ("gemma-3-4b", 11, (19, 118)),
    ("gemma-3-4b", 12, (20, 120)),
    ("gemma-3-12b", 12, (17, 52, 127)),
    ("gemma-3-12b", 24, (20, 60, 150)),
    ("gemma-3-12b", 41, (20, 60, 150)),
  ],
)
def test_target_l0s_are_those_of_the_releases(model, layer, targets):
  assert gemma_scope_2.target_l0s(model, layer) == targets


def test_baselines():
  found = {}
  for family in baselines.FAMILIES:
    for which in (family, f"{family},res.9,131k", f"{family},att.9,16k"):
      config = baselines.get_config(which)
      settings.check(config)
      found[which] = settings.recipes(config)
  assert found["gated"][0].width == 2**17
  assert found["gated,att.9,16k"][0].width == 2**14
  assert {recipe.family for recipe in found["random_decoder"]} == {"jumprelu"}
  assert found["random_decoder"][0].frozen == ("w_dec",)
  assert [recipe.k for recipe in found["topk"]] == [20, 50, 100, 200]
  assert {r.family for each in found.values() for r in each} == set(FAMILIES)
  with pytest.raises(ValueError, match="family 'foo': expected one of gated"):
    baselines.get_config("foo")

"""Entries of a sweep -> harvests and groups."""

import itertools
import random

import pytest

from configs import gemma_scope, quickstart
from gemmascope_jax.experiment import settings
from launch.sweeps import grid, plan, reading
from launch.sweeps.reading import Sweep

_CONFIG = "configs/quickstart.py"


def _make(*entries, kept=None, latents=0):
  return plan.make(Sweep(_CONFIG, entries, latents), kept)


def test_members_share_a_run_and_sites_share_a_harvest():
  made = _make(
    *grid.product(
      grid.axis("train.site", ("res.5", "mlp.5")),
      grid.axis("recipe.width", (512, 1024)),
    )
  )
  assert len(made.groups) == 2 and made.saes == 2 * 2 * 4  # of four lambdas
  (harvest,) = made.harvests
  assert harvest.sites == ("mlp.5", "res.5") and harvest.rows == 196_608
  assert all(group.harvest is harvest for group in made.groups)


def test_every_sae_is_in_one_group_as_its_entry_says():
  """What a group's command trains is what the entries ask for, one by one."""
  values = {
    "train.site": ("res.5", "att.3"),
    "recipe.width": (512, 1024),
    "recipe.batch_size": (512, 1024),
    "train.target_l0s": ((), (20, 50)),
    "recipe.seed": (0, 1),
    "data.window": (128, 256),
    "recipe.threshold_init_l0": (0.0, 80.0),
  }
  every = [
    dict(zip(values, each, strict=True))
    for each in itertools.product(*values.values())
  ]
  entries = random.Random(0).sample(every, 40)
  made = _make(*entries, latents=4096)

  def saes(config):
    return [
      (config.train.site, config.data.window, recipe)
      for recipe in settings.recipes(config)
    ]

  wanted = []
  for entry in entries:
    config = quickstart.get_config()
    config.update_from_flattened_dict(entry)
    wanted += saes(config)
  found = []
  for group in made.groups:
    config = quickstart.get_config()
    config.update_from_flattened_dict(group.overrides)
    assert len({recipe.batch_size for recipe in group.recipes}) == 1
    assert group.config.train.site in config.harvest.sites
    assert list(group.recipes) == settings.recipes(config)
    assert sum(recipe.width for recipe in group.recipes) <= 4096
    found += saes(config)
  assert len(found) == len(wanted) == made.saes
  assert all(sae in wanted for sae in found)
  assert len({group.name for group in made.groups}) == len(made.groups)


def test_table_1_of_2b_is_whole():
  made = plan.make(reading.sweep("configs/sweeps/gemma_scope_2b.py"))
  # 26 layers of 4 kinds at 16k and 3 at 65k; six of res.12, and res.5 and .19.
  entries = 26 * 4 + 26 * 3 + 5 + 2
  assert made.saes == 3 * entries and len(made.sweep.entries) == entries
  tokens = lambda count: sum(
    len(group.recipes)
    for group in made.groups
    if group.config.train.tokens == count * 10**9
  )
  assert (tokens(4), tokens(8), tokens(16)) == (3 * 104, 3 * 82, 3 * 3)
  assert [len(each.sites) for each in made.harvests] == [101, 3]
  assert made.harvests[1].sites == ("res.5", "res.12", "res.19")
  found = {
    (group.config.train.site, recipe.width)
    for group in made.groups
    for recipe in group.recipes
  }
  assert found == {
    (entry.sites[0], entry.width) for entry in gemma_scope.table_1("gemma-2-2b")
  }


def test_what_is_read_together_is_harvested_together():
  transcoder = {"train.site": "mlp_in.5", "train.target_site": "mlp.5"}
  transcoder |= gemma_scope.AS_TRANSCODER
  made = _make(
    transcoder,
    {"train.site": "mlp.5", "harvest.rows": 400_000},
    {"train.site": "res.5"},
    {"train.site": "res.9", "data.source": "live"},
    {"train.site": "res.5", "data.window": 128},
  )
  rows = {each.sites: each.rows for each in made.harvests}
  assert rows == {("mlp.5", "mlp_in.5"): 400_000, ("res.5",): 196_608}
  assert len(made.harvests) == 3  # another window is another text
  assert made.groups[3].harvest is None
  harvests, groups = made.runs("root")
  assert "--config.data.window=128" in harvests[2].command
  assert not any("harvest.root" in part for part in groups[3].command)


def test_a_sweep_that_grows_keeps_its_runs_and_harvests():
  entries = [{"train.site": "res.5"}, {"train.site": "mlp.5"}]
  before = _make(*entries)
  after = _make(
    *entries,
    {"train.site": "res.9"},
    {"train.site": "res.5", "recipe.width": 512},
    kept=plan.Kept(before.harvests),
  )
  assert after.harvests[0] is before.harvests[0]
  assert after.harvests[1].sites == ("res.9",)
  assert [group.name for group in after.groups[:2]] == [
    group.name for group in before.groups
  ]
  again = before.runs("root")[1], after.runs("root")[1]
  assert again[0][1] == again[1][1] and again[0][0] != again[1][0]


@pytest.mark.parametrize(
  ("entries", "match"),
  [
    ([], "is empty"),
    (
      [{"recipe.widht": 3}],
      "entry 0.*no setting 'recipe.widht'; did you mean 'recipe.width'",
    ),
    ([{"zzz": 3}], "no setting 'zzz'; see configs/default.py"),
    ([{}, {"recipe.width": "wide"}], "entry 1"),
    ([{"recipe.width": 0}], "entry 0.*width is 0"),
    ([{"workdir": "x"}], "workdir is the sweep's own"),
    ([{}, {"recipe.width": 4096}], "entry 1.*same SAE comes twice"),
    ([{"train.site": "res"}], "entry 0.*res"),
    ([{"train.site": "res.99"}], "entry 0.*res.99.*layers 0..17"),
  ],
)
def test_errors_name_the_entry(entries, match):
  with pytest.raises(ValueError, match=match):
    _make(*entries)


def test_a_config_with_runs_of_its_own_is_refused():
  with pytest.raises(ValueError, match=r"zoo.py has runs of its own \(.*mlp"):
    plan.make(Sweep("configs/zoo.py", ({"recipe.seed": 1},)))
  with pytest.raises(ValueError, match="no config of SAEs"):
    plan.make(Sweep("configs/finetune.py", ({"recipe.seed": 1},)))


@pytest.mark.parametrize(
  ("code", "match"),
  [
    ("CONFIG = 5", "CONFIG is 5; expected the path"),
    ("LATENTS_PER_RUN = 'abc'", "LATENTS_PER_RUN is 'abc'; expected a whole"),
    ("LATENTS_PER_RUN = -1", "LATENTS_PER_RUN is -1; expected a whole"),
    ("LATENT_PER_RUN = 1", "LATENT_PER_RUN: did you mean LATENTS_PER_RUN"),
    ("get_sweep = lambda: None", r"get_sweep\(\) returned None; expected a"),
    ("get_sweep = lambda: 1 / 0", "sweep.py, line 3: ZeroDivisionError"),
    ("import nothing_of_the_kind", "line 3: ModuleNotFoundError: No module"),
    ("def get_sweep(:", "SyntaxError: .*sweep.py, line 3"),
    (
      "from launch.sweeps import grid\ngrid.axis('train.site', 'res.5')",
      "line 4: the values of train.site are 'res.5'; expected several",
    ),
  ],
)
def test_code_that_makes_no_sweep(code, match, tmp_path):
  path = tmp_path / "sweep.py"
  path.write_text(
    f"CONFIG = 'configs/quickstart.py'\nget_sweep = lambda: [{{}}]\n{code}\n"
  )
  with pytest.raises(ValueError, match=match):
    reading.sweep(str(path))
  path.with_suffix(".txt").write_text("")
  with pytest.raises(ValueError, match="expected a file of Python code"):
    reading.sweep(str(path.with_suffix(".txt")))


def test_errors_of_files(tmp_path):
  with pytest.raises(FileNotFoundError, match="no file"):
    reading.sweep(str(tmp_path / "none.py"))
  path = tmp_path / "bad.py"
  path.write_text("CONFIG = 'configs/quickstart.py'\n")
  with pytest.raises(ValueError, match=r"has no get_sweep"):
    reading.sweep(str(path))
  path.write_text("CONFIG = 'c'\ndef get_sweep():\n  return [3]\n")
  with pytest.raises(ValueError, match="entry 0 is 3; expected a dict"):
    reading.sweep(str(path))
  with pytest.raises(ValueError, match="no get_config"):
    reading.config(str(path))

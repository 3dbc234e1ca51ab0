"""The whole path on a tiny model on disk: stages, resume, and refusals."""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import gemmascope_jax as gs
from configs import default, gemma2_2b, quickstart
from experiments import _binary as _binary_module
from gemmascope_jax import artifacts, experiment
from gemmascope_jax.data.stores.shards import CorruptStoreError
from gemmascope_jax.data.stores.store_plan import StoreMismatchError
from gemmascope_jax.experiment import (
  activations,
  bench,
  releasing,
  settings,
  stored_config,
)
from gemmascope_jax.sae.config import Recipe
from tests.digests import digests
from tests.gemma import tiny_files

_ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("model")
  tiny_files.write_tokenizer(folder)
  tensors = tiny_files.hf_tensors(tiny_files.random_params())
  return tiny_files.write_hf(folder, tensors)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  rng = np.random.default_rng(0)
  lines = [
    " ".join(f"w{i}" for i in rng.zipf(1.3, 40) % 300 + 4) for _ in range(900)
  ]
  path = tmp_path_factory.mktemp("text") / "text.jsonl"
  path.write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
  return path


def _config(model, text, workdir):
  config = quickstart.get_config()
  config.workdir = str(workdir)
  config.progress = False
  config.lm.source = str(model)
  config.data.sources = (f"file:{text}",)
  config.data.window = 16
  config.harvest.sites = ("res.1", "mlp.0")
  config.harvest.rows = 6_000
  config.harvest.rows_per_shard = 1_000
  config.train.site = "res.1"
  config.train.tokens = 6_400
  config.train.sparsity_coefficients = (1e-3, 1e-1)
  config.recipe.width = 96
  config.recipe.batch_size = 64
  config.recipe.threshold_init_l0 = 12.0
  config.recipe.bandwidth = 0.1
  config.evaluate.sequences = 12
  config.evaluate.pca_components = 5
  config.evaluate.stride = 2
  config.evaluate.latents = 5
  config.evaluate.contexts = 2
  return config


@pytest.fixture(scope="module")
def done(model, text, tmp_path_factory):
  config = _config(model, text, tmp_path_factory.mktemp("run"))
  experiment.harvest(config)
  experiment.train(config)
  result = experiment.evaluate(config)
  return config, result, experiment.make_report(config)


def _digests(workdir, *folders):
  """Everything but logs, checkpoints and timings."""
  return {
    path: digest
    for folder in folders
    for path, digest in digests(workdir, folder).items()
  }


def test_results_hold_saes_and_baselines_with_standard_errors(done):
  _, result, _ = done
  kinds = [row["kind"] for row in result["rows"]]
  assert kinds == ["sae"] * 2 + ["baseline"] * 4
  for row in result["rows"]:
    for metric in ("delta_loss", "fvu"):
      assert row[metric]["stderr"] >= 0 and row[metric]["n"] == 12
  dense, sparse = result["rows"][:2]
  assert dense["l0"]["mean"] > sparse["l0"]["mean"]
  assert dense["fvu"]["mean"] < sparse["fvu"]["mean"]
  by_name = {row["name"]: row for row in result["rows"]}
  assert by_name["mean ablation"]["fvu"]["mean"] == pytest.approx(1, abs=0.05)
  assert by_name["zero ablation"]["loss_recovered"]["mean"] == 0


def test_releases_are_named_by_measured_l0_and_agree_with_the_results(done):
  config, result, _ = done
  lm = gs.gemma.load(config.lm.source)
  row = result["rows"][0]
  folder = pathlib.Path(config.workdir) / row["release"]
  assert f"average_l0_{round(row['l0']['mean'])}" in folder.name
  sae = gs.sae.load(folder)
  assert sae.config.site == "res.1" and sae.config.model == lm.label
  store = experiment.harvest(config)
  x = store.read("res.1", 0, 500)
  assert np.isfinite(np.asarray(sae(x))).all()


def test_a_release_has_the_losses_of_the_evaluation(done, tmp_path):
  config, result, _ = done
  shutil.copytree(config.workdir, tmp_path / "run")
  stored = stored_config.read(tmp_path / "run", default.get_config())
  stored.progress = False
  found = releasing.release(stored, tmp_path / "out")
  assert found["reused"] == len(found["cards"]) == 2
  rows = {row["name"]: row for row in result["rows"]}
  for card in found["cards"].values():
    metrics, row = card["evaluation"]["metrics"], rows[card["name"]]
    assert metrics["delta_loss"] == row["delta_loss"]
    assert metrics["fvu"]["mean"] == pytest.approx(row["fvu"]["mean"], rel=1e-4)
    assert card["evaluation"]["tokens"]["checked_against_training"]
    assert card["training"]["dead"]["share"] == row["dead_fraction"]


def test_the_report_lies_where_it_is_said_to(done):
  _, _, paths = done
  assert all(path.exists() for path in paths.values())
  assert any(path.name == "index.html" for path in paths.values())


def test_the_same_again_elsewhere_gives_the_same_bytes(
  done, model, text, tmp_path
):
  config, _, _ = done
  other = _config(model, text, tmp_path)
  for stage in (
    experiment.harvest,
    experiment.train,
    experiment.evaluate,
    experiment.make_report,
  ):
    stage(other)
  folders = ("store", "train/saes", "releases", "results")
  assert _digests(config.workdir, *folders) == _digests(tmp_path, *folders)


def test_finished_stages_are_not_done_again(done):
  config, result, _ = done
  before = {
    path: os.stat(path).st_mtime_ns
    for path in pathlib.Path(config.workdir).rglob("*")
    if path.is_file() and "report" not in path.parts
  }
  experiment.harvest(config)
  experiment.train(config)
  assert experiment.evaluate(config) == result
  assert before == {path: os.stat(path).st_mtime_ns for path in before}


def test_an_evaluation_that_was_killed_goes_on(done, model, text, tmp_path):
  config, result, _ = done
  other = _config(model, text, tmp_path)
  experiment.harvest(other)
  experiment.train(other)
  experiment.evaluate(other)
  first = sorted((tmp_path / "results/parts").glob("*_00000.npz"))
  second = sorted((tmp_path / "results/parts").glob("*_00001.npz"))
  assert len(first) == len(second) == 1 + len(result["rows"])
  # As a kill would leave it: one batch done and half of the next, no result.
  for part in second[::2]:
    part.unlink()
  (tmp_path / "results/fidelity.json").unlink()
  before = {part: os.stat(part).st_mtime_ns for part in first}
  assert experiment.evaluate(other) == result
  assert before == {part: os.stat(part).st_mtime_ns for part in first}


def test_stages_out_of_order_say_what_to_run_first(model, text, tmp_path):
  config = _config(model, text, tmp_path)
  with pytest.raises(FileNotFoundError, match="experiments.harvest"):
    experiment.train(config)
  with pytest.raises(FileNotFoundError, match="experiments.train"):
    experiment.evaluate(config)
  with pytest.raises(FileNotFoundError, match="experiments.evaluate"):
    experiment.make_report(config)


def test_a_store_of_another_model_is_refused(done, text, tmp_path):
  config, _, _ = done
  params = tiny_files.random_params()
  params["layer_0"]["mlp"]["up"] *= 1.01
  tiny_files.write_tokenizer(tmp_path / "other")
  other = tiny_files.write_hf(tmp_path / "other", tiny_files.hf_tensors(params))
  changed = _config(other, text, config.workdir)
  with pytest.raises(StoreMismatchError, match="was harvested from"):
    experiment.evaluate(changed)


def test_a_site_that_the_store_lacks_is_refused(done):
  config, _, _ = done
  changed = config.copy_and_resolve_references()
  changed.train.site = "att.1"
  with pytest.raises(ValueError, match="train.site is att.1, but harvest"):
    experiment.train(changed)
  changed.harvest.sites = ("res.1", "mlp.0", "att.1")
  with pytest.raises(ValueError, match="site att.1: .* holds res.1, mlp.0"):
    experiment.train(changed)


def test_a_site_that_the_model_lacks_is_refused(model, text, tmp_path):
  config = _config(model, text, tmp_path)
  config.harvest.sites, config.train.site = ("res.7",), "res.7"
  with pytest.raises(ValueError, match="site res.7: .* has layers 0..2"):
    experiment.harvest(config)


def test_the_default_recipe_is_the_papers():
  config = default.get_config()
  values = config.recipe.to_dict()
  values["threshold_init_l0"] = None
  assert Recipe.from_dict(values) == Recipe()
  assert config.evaluate.sequences == 2048 and config.data.window == 1024
  assert -(-config.train.tokens // 4096) == Recipe().steps
  assert gemma2_2b.get_config().recipe == config.recipe


def _binary(name, *arguments):
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
  return subprocess.run(
    [sys.executable, "-m", f"experiments.{name}", *arguments],
    cwd=_ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_gemma_2_gets_as_far_as_weights_not_found(tmp_path):
  found = _binary(
    "harvest",
    "--config=configs/gemma2_2b.py",
    f"--config.workdir={tmp_path}",
  )
  assert found.returncode == 1
  assert "Traceback" not in found.stderr
  for words in ("google/gemma-2-2b", "hf auth login", "licence"):
    assert words in found.stderr, found.stderr


def test_an_unknown_config_key_is_named():
  found = _binary(
    "train", "--config=configs/quickstart.py", "--config.recipe.widht=3"
  )
  assert found.returncode != 0
  assert "widht" in found.stderr and "width" in found.stderr


def test_a_preset_that_does_not_exist_is_an_error_without_a_traceback():
  found = _binary("train", "--config=configs/gemma2_2b.py:nonsense")
  assert found.returncode == 1 and "Traceback" not in found.stderr
  assert "'nonsense'" in found.stderr and "SITE,WIDTH" in found.stderr


def test_of_a_setting_that_is_given_twice_the_last_counts(tmp_path):
  path = tmp_path / "found.flags"
  path.write_text("--config.train.sparsity_coefficients=(1e-4,2e-4)\n")
  given = ["train", f"--flagfile={path}", "--traceback"]
  given += ["--config.seed=1", "--config.train.sparsity_coefficients=()"]
  assert _binary_module._last_of_each(given) == ["train", *given[2:]]


def test_a_binary_without_a_config_says_so():
  found = _binary("train")
  assert found.returncode == 1 and "--config" in found.stderr


def test_results_are_json_that_says_what_it_is(done):
  config, result, _ = done
  path = pathlib.Path(config.workdir) / "results/fidelity.json"
  assert artifacts.read_json(path) == result
  for key in ("model", "token_policy", "config", "code", "store", "site"):
    assert result[key]


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (
      {"seed": 5},
      "another run: its seed is 0, not 5",
    ),
    (
      {"recipe.learning_rate": 3e-3},
      r"no whole SAE .*is there, but its learning_rate is [0-9.]+, not 0.003",
    ),
    ({"train.bucket_rows": 100}, "its shuffle.bucket_rows is .*, not 100"),
  ],
)
def test_saes_of_another_configuration_are_not_evaluated(done, change, says):
  config = done[0].copy_and_resolve_references()
  config.update_from_flattened_dict(change)
  with pytest.raises((ValueError, FileNotFoundError), match=says):
    experiment.evaluate(config)


@pytest.mark.slow
def test_lambdas_are_found_by_short_runs(done, tmp_path):
  config = done[0].copy_and_resolve_references()
  config.workdir = str(tmp_path)
  config.data.source = str(activations.open_rows(done[0]).root)
  flags = ["--config=configs/quickstart.py", "--steps=20"]
  names = ("workdir", "progress", "data.source", "train.site", "recipe.width")
  names += ("recipe.batch_size", "recipe.threshold_init_l0", "train.tokens")
  names += ("harvest.sites", "recipe.bandwidth")
  flat = {
    **{name: config[name] for name in names if "." not in name},
    **{
      name: config[name.split(".")[0]][name.split(".")[1]]
      for name in names
      if "." in name
    },
  }
  flags += [f"--config.{name}={value}" for name, value in flat.items()]
  flags.append(f"--write={tmp_path}/found.flags")
  far = _binary("calibrate", *flags, "--l0=1,90")
  reached = re.search("they gave ([0-9.]+) to ([0-9.]+). Want", far.stderr)
  assert reached and far.returncode == 1, far.stderr
  assert far.stdout.count("a guess") == 2
  assert not (tmp_path / "found.flags").exists()
  middle = sum(map(float, reached.groups())) / 2
  found = _binary("calibrate", *flags, f"--l0=1,{middle:.5g}")
  assert found.returncode == 0, found.stderr
  setting = (tmp_path / "found.flags").read_text().strip()
  assert setting.startswith("--config.train.sparsity_coefficients=(")
  assert setting.split("=")[1] in found.stdout
  assert "without the guess for L0 1)" in found.stdout
  assert setting.count(",") == 1
  assert "one standard error" in found.stdout
  curves = _binary("report", "--training_only", flags[0], *flags[2:-1])
  assert curves.returncode == 1 and "no training metrics" in curves.stderr


def test_a_stride_takes_every_nth_held_out_window(done):
  config = done[0].copy_and_resolve_references()
  lm = gs.gemma.load(config.lm.source)
  rows = experiment.harvest(config)
  config.evaluate.sequences, config.evaluate.stride = 4, 3
  every_third = bench.held_out(config, lm, rows.keys)
  config.evaluate.sequences, config.evaluate.stride = 12, 1
  every = bench.held_out(config, lm, rows.keys)
  np.testing.assert_array_equal(every_third, every[::3])


def test_documents_trained_on_are_not_evaluated_on(done):
  config = done[0].copy_and_resolve_references()
  config.data.held_out = 0.6
  with pytest.raises(ValueError, match="held-out documents are among those"):
    experiment.evaluate(config)


def test_another_dtype_is_measured_anew(done, model, text, tmp_path):
  config, result, _ = done
  other = config.copy_and_resolve_references()
  other.workdir = str(tmp_path)
  shutil.copytree(config.workdir, tmp_path, dirs_exist_ok=True)
  other.lm.dtype = "bfloat16"
  found = experiment.evaluate(other)
  assert found["clean_loss"] != result["clean_loss"]
  assert found["clean_loss"]["mean"] == pytest.approx(
    result["clean_loss"]["mean"], rel=0.02
  )


def test_damage_is_noticed_and_mended_by_the_command_named(done, tmp_path):
  config, result, _ = done
  other = config.copy_and_resolve_references()
  other.workdir = str(tmp_path)
  shutil.copytree(config.workdir, tmp_path, dirs_exist_ok=True)
  release = tmp_path / result["rows"][0]["release"] / "params.npz"
  release_digest = artifacts.sha256_file(release)
  release.write_bytes(release.read_bytes()[:-100])
  assert experiment.evaluate(other) == result
  assert artifacts.sha256_file(release) == release_digest
  member = next((tmp_path / "train/saes").iterdir()) / "params.npz"
  member_digest = artifacts.sha256_file(member)
  member.write_bytes(member.read_bytes()[:-100])
  with pytest.raises(
    FileNotFoundError, match="no whole SAE.*experiments.train"
  ):
    experiment.evaluate(other)
  experiment.train(other)
  assert artifacts.sha256_file(member) == member_digest
  part = next((tmp_path / "results/parts").iterdir())
  part.write_bytes(b"not a zip")
  (tmp_path / "results/fidelity.json").unlink()
  assert experiment.evaluate(other) == result
  shard = next((tmp_path / "store").glob("*/res.1/00002.npy"))
  shard_digest, whole = artifacts.sha256_file(shard), shard.read_bytes()
  shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  shutil.rmtree(tmp_path / "train")
  with pytest.raises(CorruptStoreError, match=shard.name):
    experiment.train(other)
  shard.unlink()
  experiment.harvest(other)
  assert artifacts.sha256_file(shard) == shard_digest
  experiment.train(other)
  assert [artifacts.sha256_file(path) for path in _saes(tmp_path)] == [
    artifacts.sha256_file(path) for path in _saes(config.workdir)
  ]


def _saes(workdir):
  return sorted(pathlib.Path(workdir).glob("train/saes/*/params.npz"))


@contextlib.contextmanager
def _served(root):
  process = subprocess.Popen(
    [sys.executable, "-m", "experiments.serve", f"--store={root}"],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    found = None
    while not found:
      found = re.search(r"grpc://[\w.]+:\d+", process.stdout.readline())
    yield found[0]
  finally:
    process.kill()
    process.wait()
    process.stdout.close()


def test_training_from_anywhere_is_training_from_the_store(done, tmp_path):
  config = done[0]
  root = next((pathlib.Path(config.workdir) / "store").iterdir())
  expected = [path.read_bytes() for path in _saes(config.workdir)]
  with _served(root) as address:
    for number, source in enumerate([str(root), f"file://{root}", address]):
      other = config.copy_and_resolve_references()
      other.workdir = str(tmp_path / str(number))
      other.data.source = source
      experiment.train(other)
      found = [path.read_bytes() for path in _saes(other.workdir)]
      assert found == expected, source
    with pytest.raises(ValueError, match="evaluation looks rows up"):
      experiment.evaluate(other)
  other.data.source = str(root)
  assert experiment.evaluate(other)["rows"] == done[1]["rows"]


def test_online_training_needs_no_store(done, tmp_path):
  config = done[0].copy_and_resolve_references()
  config.workdir = str(tmp_path)
  config.data.source = "live"
  experiment.train(config)
  assert not (tmp_path / "store").exists()
  # The same rows in the same order; only C is measured on a sample, which here
  # is everything, summed in another order.
  for ours, theirs in zip(_saes(tmp_path), _saes(done[0].workdir), strict=True):
    ours, theirs = np.load(ours), np.load(theirs)
    for name in theirs.files:
      np.testing.assert_allclose(
        ours[name], theirs[name], rtol=1e-3, atol=1e-3 * theirs[name].std()
      )
  found = experiment.evaluate(config)
  assert [row["name"] for row in found["rows"]] == [
    row["name"] for row in done[1]["rows"]
  ]
  config.train.shuffle = "global"
  with pytest.raises(ValueError, match="use 'bucket'"):
    experiment.train(config)


def test_a_text_is_the_same_wherever_and_whenever_it_was_copied(
  model, text, tmp_path
):
  config = _config(model, text, tmp_path / "run")
  before = settings.text(config)
  os.utime(text, (1, 1))
  assert settings.text(config) == before
  copy = tmp_path / text.name
  copy.write_bytes(text.read_bytes() + b'{"text": "more"}\n')
  config.data.sources = (f"file:{copy}",)
  assert settings.text(config)["files"] != before["files"]


def test_harvest_in_parts_gives_the_same_store(done, tmp_path, monkeypatch):
  config = done[0].copy_and_resolve_references()
  # As on two machines: each has its own work directory and its own copy of the
  # text; only the folder of stores is shared, by a relative name.
  monkeypatch.chdir(_ROOT)
  config.workdir = str(tmp_path / "run0")
  config.harvest.root = os.path.relpath(tmp_path / "shared")
  flags = ["--config=configs/quickstart.py"]
  names = ("lm.source", "data.sources", "data.window", "harvest.sites")
  names += ("harvest.rows", "harvest.rows_per_shard", "harvest.root")
  names += ("train.site", "progress")
  flat = {
    name: config[name]
    if "." not in name
    else config[name.split(".")[0]][name.split(".")[1]]
    for name in names
  }
  flags += [f"--config.{name}={value}" for name, value in flat.items()]
  flags += ["--config.harvest.parts=2"]
  processes = [
    subprocess.Popen(
      [sys.executable, "-m", "experiments.harvest", *flags]
      + [f"--config.harvest.part={part}"]
      + [f"--config.workdir={tmp_path}/run{part}"],
      cwd=_ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    for part in range(2)
  ]
  for process in processes:
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
  config.harvest.parts = 2
  ours = pathlib.Path(activations.open_rows(config).root)
  assert ours.parent == tmp_path / "shared"
  assert experiment.harvest(config).root == ours
  theirs = next((pathlib.Path(done[0].workdir) / "store").iterdir())
  assert ours.name == theirs.name
  files = sorted(p.relative_to(ours) for p in ours.rglob("*") if p.is_file())
  assert files == sorted(
    p.relative_to(theirs) for p in theirs.rglob("*") if p.is_file()
  )
  for name in files:
    if name.name != "manifest.json":  # holds the config
      assert artifacts.sha256_file(ours / name) == artifacts.sha256_file(
        theirs / name
      ), name


def test_a_replaced_text_is_harvested_anew(done, model, text, tmp_path):
  copy = tmp_path / "text.jsonl"
  copy.write_bytes(text.read_bytes())
  config = _config(model, copy, tmp_path / "run")
  first = experiment.harvest(config).fingerprint
  lines = copy.read_text().splitlines(keepends=True)
  copy.write_text("".join(lines[100:]))
  assert experiment.harvest(config).fingerprint != first


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"train.log_every": 0}, "train.log_every is 0; expected at least 1"),
    ({"evaluate.batch": 0}, "evaluate.batch is 0"),
    ({"evaluate.latents": 0}, "evaluate.latents is 0"),
    ({"harvest.sites": ()}, "harvest.sites is empty"),
    ({"data.sources": ()}, "data.sources is empty"),
    ({"data.sources": ("sotu", "poems")}, "text source 'poems': expected one"),
    ({"recipe.adam_b1": 1.5}, "recipe.adam_b1 is 1.5"),
    ({"recipe.learning_rate_decay_share": 3.0}, "decay_share is 3.0"),
    ({"recipe.sparsity_warmup_steps": -1}, "must not be negative"),
    ({"recipe.threshold_init_l0": 1e6}, "between 0 and the width"),
    (
      {"train.sparsity_coefficients": (float("nan"),)},
      "expected a finite number",
    ),
  ],
)
def test_settings_that_make_no_sense_are_refused_first(
  model, text, tmp_path, change, says
):
  config = _config(model, text, tmp_path)
  config.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=says):
    experiment.harvest(config)
  assert not list(tmp_path.iterdir())


def test_an_unknown_section_is_named():
  found = _binary(
    "train", "--config=configs/quickstart.py", "--config.recpie.width=3"
  )
  assert found.returncode != 0 and "Traceback" not in found.stderr
  assert "recpie" in found.stderr

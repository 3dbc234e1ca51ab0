"""Releases of a run on a tiny model: made, cut short, checked, tampered with."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest

import gemmascope_jax as gs
from configs import default
from gemmascope_jax import artifacts, experiment
from gemmascope_jax.data import lock
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.experiment import (
  release_checking,
  releasing,
  stored_config,
)
from gemmascope_jax.gemma import sites
from gemmascope_jax.releases import card as cards
from gemmascope_jax.releases import folder, formats, gemma_scope, readme
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig, weights_hash
from tests import experiment_test, flag_errors
from tests.digests import digests
from tests.gemma import tiny_files

model, text = experiment_test.model, experiment_test.text
_TRANSCODER = {"train.site": "mlp_in.0", "train.target_site": "mlp.0"}


def _sae(lm, site, seed, width=96, k=None, target=None, skip=False):
  inputs = sites.site_width(lm.config, site)
  outputs = sites.site_width(lm.config, target or site)
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  w_dec = normal(width, outputs)
  details = {
    "recipe": {"sparsity_coefficient": 1e-3, "start": "/home/me/runs/other"},
    "rows": 640,
    "steps": 10,
    "dead_fraction": 0.25,
    "dead_after_rows": 320,
    "normalisation": {site: 3.5},
    "weights_hash": lm.weights_hash,
  }
  return SAE(
    Params(
      w_enc=normal(inputs, width) * 0.1,
      b_enc=np.zeros(width, np.float32),
      w_dec=w_dec / np.linalg.norm(w_dec, axis=1, keepdims=True),
      b_dec=normal(outputs),
      threshold=np.full(width, 1.0 if k is None else 0, np.float32),
      w_skip=normal(inputs, outputs) * np.float32(0.1) if skip else None,
    ),
    SAEConfig(
      family="jumprelu" if k is None else "topk",
      k=k,
      site=site,
      target_site=target,
      model=lm.label,
      token_policy=TokenPolicy.of(lm.tokenizer),
      provenance=artifacts.canonical_json(details),
    ),
  )


@pytest.fixture(scope="module")
def run(model, text, tmp_path_factory):
  """Two kinds of sites, two SAEs of one L0, and a run on other text."""
  workdir = tmp_path_factory.mktemp("run")
  config = experiment_test._config(model, text, workdir)
  config.runs = (
    {"name": "res"},
    {"name": "transcoder", "recipe.skip": True} | _TRANSCODER,
    {"name": "loose", "data.packed": False},
  )
  stored_config.write(config)
  lm = gs.gemma.load(model)
  for name, saes in {
    "res": {
      "topk k=3": _sae(lm, "res.1", 1, k=3),
      "topk k=3 seed=1": _sae(lm, "res.1", 2, k=3),
    },
    "transcoder": {
      "plain": _sae(lm, "mlp_in.0", 0, target="mlp.0"),
      "skip": _sae(lm, "mlp_in.0", 3, target="mlp.0", skip=True),
    },
    "loose": {"plain": _sae(lm, "res.1", 4)},
  }.items():
    train = workdir / name / "train"
    listed = []
    for member, sae in saes.items():
      slug = member.replace(" ", "_")
      gemma_scope.save(sae, train / "saes" / slug)
      listed.append({"name": member, "folder": slug})
    artifacts.write_json(train / "members.json", listed)
  config = stored_config.read(workdir, default.get_config())
  config.progress = False
  return config


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
  root = tmp_path_factory.mktemp("out") / "mine"
  return root, releasing.release(run, root, licence="cc-by-4.0")


def _verify(root, run, **options):
  options = {"texts": [run.data.sources[0]], "lm": run.lm.source} | options
  return release_checking.verify(root, progress=False, **options)


def _bad(lines):
  return [str(line) for line in lines if not line.ok]


def test_the_config_is_that_of_the_run(run, model, text):
  written = experiment_test._config(model, text, run.workdir)
  for section in ("recipe", "data", "evaluate", "lm"):
    assert run[section].to_dict() == written[section].to_dict()
  assert [one["name"] for one in run.runs] == ["res", "transcoder", "loose"]


def test_every_sae_lies_under_its_measured_l0_with_its_card(run, made):
  root, found = made
  names = list(found["cards"])
  assert names[:2] == [
    "res/layer_1/width_0k/average_l0_3",
    "res-2/layer_1/width_0k/average_l0_3",
  ]
  for name in names[2:]:
    l0 = found["cards"][name]["evaluation"]["metrics"]["l0"]["mean"]
    plain = f"layer_0/width_0k/average_l0_{round(l0)}"
    assert name in (f"transcoders/{plain}", f"transcoders-2/{plain}")
  assert found["left_out"] == ["loose/plain"]
  for name, card in found["cards"].items():
    assert cards.read(root / name / folder.CARD) == card
    sae = gs.sae.load(root / name)
    run_name, member = card["name"].split("/")
    own = pathlib.Path(run.workdir, run_name, "train/saes")
    assert weights_hash(sae) == weights_hash(
      gs.sae.load(own / member.replace(" ", "_"))
    )
    assert card["token_policy"] == {"excluded_ids": [0, 1, 2], "pad_id": 0}
    assert card["sae"]["normalisation"] == {
      "folded": True,
      "scale": {sae.config.site: 3.5},
    }
    assert card["training"]["activations"] == 640
    assert card["evaluation"]["code"] and card["licence"] == "cc-by-4.0"
    for metric, value in card["evaluation"]["metrics"].items():
      assert value["n"] == 12 and value["stderr"] is not None, metric


def test_the_numbers_are_those_of_the_front_door(run, made):
  root, found = made
  lm = gs.gemma.load(run.lm.source)
  name, card = list(found["cards"].items())[0]
  tokens = experiment.evaluation.bench.held_out(run, lm, None)
  sae = gs.sae.load(root / name)
  other = gs.studies.fidelity(lm, {"res.1": sae}, tokens)["res.1"]
  for metric in ("l0", "fvu", "delta_loss", "loss_recovered", "loss_clean"):
    ours, theirs = card["evaluation"]["metrics"][metric], getattr(other, metric)
    assert ours["mean"] == pytest.approx(theirs.mean, rel=1e-4, abs=1e-6)
    assert ours["stderr"] == pytest.approx(theirs.stderr, rel=1e-3, abs=1e-6)


def test_no_path_of_this_machine_is_published(run, made):
  root, _ = made
  here = [run.workdir, run.lm.source, "/home/me", "/tmp"]
  for path in root.rglob("*"):
    content = path.read_bytes() if path.is_file() else b""
    assert not [each for each in here if each.encode() in content], path


def test_the_readme_is_a_model_card_of_the_hub(made):
  root, found = made
  page = (root / folder.README).read_text()
  about = huggingface_hub.ModelCard(page).data
  assert about.license == "cc-by-4.0" and about.library_name == "gemmascope_jax"
  assert "sparse-autoencoder" in about.tags
  for name, card in found["cards"].items():
    (row,) = [
      line for line in page.splitlines() if line.startswith(f"| `{name}` ")
    ]
    delta = card["evaluation"]["metrics"]["delta_loss"]
    said = re.search(r"(-?[\d.]+)\s±\s([\d.]+)", row.split("|")[7])
    assert float(said[1]) == pytest.approx(delta["mean"], abs=delta["stderr"])
    assert float(said[2]) == pytest.approx(delta["stderr"], rel=0.1)
  assert "| silent in evaluation |" in page and "| dead in training |" in page
  assert "counted while training, not of the finished SAE" in page
  code = re.search(r"```python\n(.*?)```", page, re.S)[1]
  lm_acts = np.zeros(
    (2, found["cards"][list(found["cards"])[0]]["sae"]["site_width"])
  )
  scope = {"x": lm_acts.astype(np.float32)}
  before = os.getcwd()
  os.chdir(root)
  try:
    exec(code, scope)
  finally:
    os.chdir(before)
  assert scope["latents"].shape == (2, 96)
  assert "the user's own text" in page and "640 activations" in page


def test_the_same_again_and_after_any_cut_gives_the_same_bytes(
  run, made, tmp_path, monkeypatch
):
  root, _ = made
  before = digests(root)
  times = {path: path.stat().st_mtime_ns for path in root.rglob("params.npz")}
  releasing.release(run, root, licence="cc-by-4.0")
  assert digests(root) == before
  assert all(path.stat().st_mtime_ns == t for path, t in times.items())
  replace, left = os.replace, [0]

  def failing(source, target):
    if str(tmp_path) in str(target):
      left[0] -= 1
      if left[0] < 0:
        raise KeyboardInterrupt
    replace(source, target)

  out = tmp_path / "again"
  monkeypatch.setattr(os, "replace", failing)
  for writes in range(1, 40, 3):
    left[0] = writes
    try:
      releasing.release(run, out, licence="cc-by-4.0")
      break
    except KeyboardInterrupt:
      with pytest.raises(folder.ReleaseError, match="cut short"):
        release_checking.verify(out)
  assert writes > 10
  assert digests(out) == before


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ({"licence": "mit"}, "licence 'cc-by-4.0', not 'mit'"),
    ({}, "licence 'cc-by-4.0', not ''"),
    (
      {"licence": "cc-by-4.0", "format": "saelens"},
      "weights in the format 'gemma_scope', not 'saelens'",
    ),
  ],
)
def test_a_release_does_not_change_its_licence_or_format(
  run, made, tmp_path, options, says
):
  root, _ = _copy(made, tmp_path)
  before = digests(root)
  with pytest.raises(ValueError, match=f"{says}; .* another --out"):
    releasing.release(run, root, **options)
  assert digests(root) == before


def test_two_at_once_do_not_mix(run, tmp_path):
  with lock.write_lock(tmp_path / "r", folder.LOCK):
    with pytest.raises(lock.LockedError, match="is being written by process"):
      releasing.release(run, tmp_path / "r", wanted=["res/*"])
  releasing.release(run, tmp_path / "r", wanted=["res/*"])


def test_members_can_be_chosen(run, tmp_path):
  found = releasing.release(run, tmp_path / "r", wanted=["res/topk_k=3"])
  assert list(found["cards"]) == ["layer_1/width_0k/average_l0_3"]
  assert "No licence is stated" in (tmp_path / "r/README.md").read_text()
  with pytest.raises(ValueError, match="not among these: layer_1"):
    releasing.release(run, tmp_path / "r", wanted=["transcoder/*"])
  with pytest.raises(ValueError, match=r"--member=none: .* there are res/topk"):
    releasing.release(run, tmp_path / "q", wanted=["none"])
  with pytest.raises(ValueError, match="SAEs of others: loose/plain"):
    releasing.release(run, tmp_path / "q", wanted=["res/*", "loose/*"])
  loose = releasing.release(run, tmp_path / "q", wanted=["loose/*"])
  (card,) = loose["cards"].values()
  assert card["evaluation"]["tokens"]["text"]["packed"] is False


@pytest.mark.parametrize(
  ("format", "wanted", "count", "refused"),
  [
    ("saelens", (), 4, None),
    ("dictionary_learning", ["res/*"], 2, "transcoder/plain: .* save it as"),
    ("circuit_tracer", ["transcoder/*"], 2, "res/topk k=3: .* transcoders"),
    ("gemma_scope_2", ["loose/*"], 1, "res/topk k=3: .* JumpReLU alone"),
  ],
)
def test_every_format_makes_a_release(
  run, tmp_path, format, wanted, count, refused
):
  root = tmp_path / "out"
  if refused:
    with pytest.raises(ValueError, match=f"{refused}.*choose another --format"):
      releasing.release(run, root, format=format)
    assert not root.exists()
  found = releasing.release(run, root, format=format, wanted=wanted)
  before = digests(root)
  releasing.release(run, root, format=format, wanted=wanted)
  assert digests(root) == before
  assert len(found["cards"]) == count
  assert not _bad(_verify(root, run))
  for name in found["cards"]:
    assert formats.recognise(root / name) == format
  assert f"in the format {format}" in (root / folder.README).read_text()


def test_what_can_not_be_released_is_refused(run, tmp_path):
  with pytest.raises(
    ValueError, match=r"licence 'wtfpl': expected one of apac"
  ):
    releasing.release(run, tmp_path, licence="wtfpl")
  with pytest.raises(ValueError, match="--format=onnx: expected one of gemma"):
    releasing.release(run, tmp_path, format="onnx")
  (tmp_path / "thesis.tex").write_text("years of work")
  with pytest.raises(ValueError, match="holds something else than a release"):
    releasing.release(run, tmp_path)
  assert os.listdir(tmp_path) == ["thesis.tex"]
  unfinished = tmp_path / "run"
  shutil.copytree(run.workdir, unfinished)
  (unfinished / "transcoder/train/saes/plain/sae.json").unlink()
  config = stored_config.read(unfinished, default.get_config())
  with pytest.raises(
    FileNotFoundError, match="transcoder/plain of .*not finished"
  ):
    releasing.release(config, tmp_path / "out")
  (unfinished / "res/train/members.json").unlink()
  with pytest.raises(FileNotFoundError, match="no trained SAEs in .*res: run"):
    releasing.release(config, tmp_path / "out")
  assert not (tmp_path / "out").exists()
  with pytest.raises(FileNotFoundError, match="no such folder"):
    stored_config.read(tmp_path / "none", default.get_config())
  with pytest.raises(FileNotFoundError, match="does not say which config"):
    stored_config.read(tmp_path, default.get_config())
  artifacts.write_json(tmp_path / "config.json", {"nonsense": 1})
  with pytest.raises(ValueError, match="settings that this version does not"):
    stored_config.read(tmp_path, default.get_config())


def test_a_good_release_is_said_to_be_one(run, made):
  root, found = made
  lines = _verify(root, run)
  assert not _bad(lines)
  assert [line.where for line in lines][-4:] == list(found["cards"])
  assert all("paired difference" in line.said for line in lines[-4:])
  part = _verify(root, run, sequences=5)
  assert not _bad(part) and "paired" in part[-1].said


def test_on_other_text_it_may_differ_by_standard_errors(run, made, tmp_path):
  root, _ = made
  lines = pathlib.Path(run.data.sources[0].removeprefix("file:")).read_text()
  half = tmp_path / "half.jsonl"
  half.write_text("\n".join(lines.splitlines()[1::2]))
  found = _verify(root, run, texts=[f"file:{half}"])
  assert not _bad(found) and "4 standard errors" in found[-1].said
  few = tmp_path / "few.jsonl"
  few.write_text(
    "\n".join(
      f'{{"text": "w7 w8 w{i % 300 + 4} w{i // 300 + 4}"}}'
      for i in range(9_000)
    )
  )
  bad = _bad(_verify(root, run, texts=[f"file:{few}"]))
  assert bad and all("on text that is not the card's" in line for line in bad)


def _copy(made, tmp_path):
  root, found = made
  shutil.copytree(root, tmp_path / "copy")
  return tmp_path / "copy", list(found["cards"])


def _index_again(root, rendered=True):
  """As somebody would who wants a change to go unnoticed."""
  index = artifacts.read_json(root / folder.INDEX)
  if rendered:
    names = [each["folder"] for each in index["saes"]]
    found = {name: cards.read(root / name / folder.CARD) for name in names}
    text = readme.render(found, index["weights_format"])
    artifacts.write_text(root / folder.README, text)
  for name in ("what", "format", "files"):
    del index[name]
  for each in index["saes"]:
    card = artifacts.read_json(root / each["folder"] / folder.CARD)
    each["weights_hash"] = card["sae"]["weights_hash"]
  folder.finish(root, index)


def test_changed_swapped_and_missing_files_are_named(run, made, tmp_path):
  root, names = _copy(made, tmp_path)
  one, other, third = (root / name / "params.npz" for name in names[:3])
  data = bytearray(one.read_bytes())
  data[len(data) // 2] ^= 1
  one.write_bytes(data)
  shutil.copy(third, other)
  (root / names[3] / folder.CARD).unlink()
  bad = "\n".join(_bad(_verify(root, run)))
  assert f"{names[0]}/params.npz: has sha256" in bad
  assert "should hold: swapped" in bad
  assert f"{names[3]}/card.json: is missing" in bad
  for name in (names[0], names[1], names[3]):
    assert f"FAIL  {name}: not measured" in bad
  assert f"FAIL  {names[2]}" not in bad


def test_forged_weights_are_found_by_what_they_do(run, made, tmp_path):
  root, names = _copy(made, tmp_path)
  where = root / names[2]
  sae = gs.sae.load(where)
  params = sae.params.replace(threshold=sae.params.threshold * 1.05)
  forged = sae.replace(params=params)
  gemma_scope.save(forged, where)
  _index_again(root)
  (line,) = _bad(_verify(root, run))
  assert "another SAE's file or card" in line
  card = artifacts.read_json(where / folder.CARD)
  card["sae"]["weights_hash"] = weights_hash(forged)
  artifacts.write_json(where / folder.CARD, card)
  _index_again(root)
  (line,) = _bad(_verify(root, run))
  assert f"{names[2]}: no longer does what its card says; L0" in line


def test_forged_cards_and_other_policies_are_found(run, made, tmp_path):
  root, names = _copy(made, tmp_path)
  card = artifacts.read_json(root / names[0] / folder.CARD)
  card["evaluation"]["metrics"]["fvu"]["mean"] /= 2
  artifacts.write_json(root / names[0] / folder.CARD, card)
  card = artifacts.read_json(root / names[2] / folder.CARD)
  card["token_policy"]["excluded_ids"] = [0, 2]
  artifacts.write_json(root / names[2] / folder.CARD, card)
  _index_again(root)
  bad = _bad(_verify(root, run))
  assert "FVU are not those of its sequences" in bad[1]
  assert f"{names[2]}: mismatched token policy: its weights" in bad[0]
  assert len(bad) == 2
  sae = json.loads((root / names[2] / gemma_scope.CARD).read_text())
  sae["token_policy"] = card["token_policy"]
  artifacts.write_json(root / names[2] / gemma_scope.CARD, sae)
  _index_again(root)
  bad = _bad(_verify(root, run))
  assert "mismatched token policy: its card says" in bad[0]
  assert "were not measured" in bad[1]


@pytest.mark.parametrize("what", ["readme", "silent", "stderr", "index"])
def test_numbers_that_nothing_gives_are_found(run, made, tmp_path, what):
  """Files that were hashed again after a number in them was changed."""
  root, names = _copy(made, tmp_path)
  file = root / names[0] / folder.CARD
  card = artifacts.read_json(file)
  metrics = card["evaluation"]["metrics"]
  if what == "readme":
    metrics["delta_loss"]["mean"] = 1e-5
    says = r"README.md: line \d+ is not what the cards give"
  elif what == "silent":
    metrics["silent"]["mean"] = 0.0
    says = "its card's silent are not those of its sequences"
  elif what == "stderr":
    metrics["fvu"]["stderr"] /= 10
    says = "its card's FVU are not those of its sequences"
  else:
    says = "the index says L0 1.0, but its card 3.0"
  artifacts.write_json(file, card)
  _index_again(root, rendered=what != "readme")
  if what == "index":
    index = artifacts.read_json(root / folder.INDEX)
    index["saes"][0]["l0"] = 1.0
    artifacts.write_json(root / folder.INDEX, index)
  (line,) = _bad(_verify(root, run))
  assert re.search(says, line), line


@pytest.mark.parametrize("metrics", [None, {"l0": None}, {"l0": {"mean": "x"}}])
def test_a_card_without_numbers_is_said(run, made, tmp_path, metrics):
  root, names = _copy(made, tmp_path)
  file = root / names[0] / folder.CARD
  card = artifacts.read_json(file)
  card["evaluation"]["metrics"] = metrics
  artifacts.write_json(file, card)
  _index_again(root, rendered=False)
  bad = "\n".join(_bad(_verify(root, run)))
  assert f"FAIL  {names[0]}: can't be loaded:" in bad
  assert re.search("card.json: evaluation.metrics.* is .*, expected", bad)


@pytest.mark.parametrize(
  "name", [".payload", "res/.hidden/params.npz", "x.incomplete"]
)
def test_a_hidden_file_is_an_added_one(run, made, tmp_path, name):
  root, _ = _copy(made, tmp_path)
  (root / name).parent.mkdir(parents=True, exist_ok=True)
  (root / name).write_text("surprise")
  (root / ".gitattributes").write_text("the Hub's own")
  (root / ".cache/huggingface").mkdir(parents=True)
  (root / ".cache/huggingface/x.metadata").write_text("of a download")
  (line,) = _bad(_verify(root, run))
  assert line == f"FAIL  {name}: is not in the index: it was added"


def test_another_model_or_tokenizer_is_said(run, made, tmp_path):
  root, _ = made
  params = tiny_files.random_params()
  other = tmp_path / "other"
  tiny_files.write_hf(other, tiny_files.hf_tensors(params))
  tiny_files.write_tokenizer(other, chat=True)
  bad = _bad(_verify(root, run, lm=str(other)))
  assert "another tokenizer" in bad[0] and "not measured" in bad[1]
  params["layer_0"]["mlp"]["up"] *= 1.01
  tiny_files.write_hf(other, tiny_files.hf_tensors(params))
  bad = _bad(_verify(root, run, lm=str(other)))
  assert "another model" in bad[0] and "name it with --lm" in bad[0]


def test_the_command_says_with_its_exit_code(made, tmp_path):
  root, names = _copy(made, tmp_path)
  for path in root.rglob("params.npz"):
    path.write_bytes(b"not an archive")
  command = [sys.executable, "-m", "experiments.release", "verify", str(root)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 1 and "it was changed" in done.stdout
  assert "Traceback" not in done.stderr


def test_flags_that_would_do_nothing_are_refused():
  expected = [
    (["verify", "x", "--out=y"], "--out does nothing with verify"),
    (["verify", "x", "--licence=mit"], "--licence does nothing with verify"),
    (["verify", "x", "--push=a/b"], "--push does nothing with verify"),
    (
      ["push", "x", "--push=a/b", "--lm=demo"],
      "--lm does nothing without verify",
    ),
    (
      ["push", "x", "--push=a/b", "--format=saelens"],
      "--format does nothing with push",
    ),
    (["--run=x", "--out=y", "--text=z"], "--text does nothing without verify"),
    (
      ["--run=x", "--out=y", "--public"],
      "--public does nothing without --push",
    ),
    (
      ["--run=x", "--out=y", "--dry_run"],
      "--dry_run does nothing without --push",
    ),
  ]
  found = flag_errors.said("experiments.release", [f for f, _ in expected])
  for message, (_, says) in zip(found, expected, strict=True):
    assert re.search(says, message), message


def test_names_are_never_markup(made, tmp_path):
  _, found = made
  name, card = next(iter(found["cards"].items()))
  card = json.loads(json.dumps(card))
  evil = "<script>x</script>|a`b\n# [c](d)"
  card["model"]["label"] = evil
  card["training"]["sources"] = [evil]
  card["training"]["licences"] = {evil: evil}
  text = readme.render({name: card}, "gemma_scope")
  assert "<script>" not in text and "\n# [c]" not in text
  assert "](d)" not in text.replace("\\](d)", "")

"""The steering command on a tiny model and an SAE on disk."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import gemmascope_jax as gs
from gemmascope_jax import artifacts
from gemmascope_jax.data.policy import PolicyMismatchError, TokenPolicy
from gemmascope_jax.experiment import steering
from gemmascope_jax.releases import gemma_scope
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig
from tests import experiment_test, flag_errors

model, text = experiment_test.model, experiment_test.text
_ROOT = pathlib.Path(__file__).parent.parent


def _sae(lm, **config):
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  w_dec = normal(12, 64)
  given = {
    "site": "res.1",
    "model": lm.label,
    "token_policy": TokenPolicy.of(lm.tokenizer),
    "provenance": artifacts.canonical_json({"weights_hash": lm.weights_hash}),
  }
  return SAE(
    Params(
      w_enc=normal(64, 12),
      b_enc=np.zeros(12, np.float32),
      w_dec=w_dec / np.linalg.norm(w_dec, axis=1, keepdims=True),
      b_dec=normal(64),
      threshold=np.full(12, 5.0, np.float32),
    ),
    SAEConfig(**(given | config)),
  )


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
  folder = tmp_path_factory.mktemp("sae")
  gemma_scope.save(_sae(gs.gemma.load(model)), folder)
  return folder


@pytest.fixture(scope="module")
def config(model, text, tmp_path_factory):
  config = experiment_test._config(model, text, tmp_path_factory.mktemp("run"))
  config.evaluate.sequences = 40
  config.evaluate.stride = 1
  return config


@pytest.fixture(scope="module")
def one(config, path):
  return steering.find(config, path, 7)


def test_say_pairs_answers_and_refuses_an_empty_prompt(one):
  made = steering.edit(one, "add", 0.0, 30.0)
  pairs = steering.say(one, ["w5 w9", "w6"], made, samples=2, max_new_tokens=5)
  assert [prompt for prompt, _, _ in pairs] == ["w5 w9", "w5 w9", "w6", "w6"]
  assert all(left == right != "" for _, left, right in pairs)
  made = steering.edit(one, "clamp", 8.0, 30.0)
  pairs = steering.say(one, ["w5 w9", "w6"], made, samples=2, max_new_tokens=5)
  assert any(left != right for _, left, right in pairs)
  with pytest.raises(ValueError, match="prompt ' ' is empty: expected a text"):
    steering.say(one, ["w6", " "], made)
  with pytest.raises(ValueError, match="'nudge': expected one of add, clamp"):
    steering.edit(one, "nudge", 1.0, 1.0)


def test_compare_writes_a_result_and_its_figure(config, one, tmp_path):
  read = steering.read_text(config, one, scored=8)
  assert read.scored.shape == (8, 16) and read.read.shape == (32, 16)
  assert not {row.tobytes() for row in read.scored} & {
    row.tobytes() for row in read.read
  }
  peaks = read.values.max(axis=1)
  np.testing.assert_allclose(read.unit, np.median(peaks[peaks > 0]))
  options = {
    "strengths": (1.0, 4.0),
    "asked": ["w5 w9", "w6"],
    "samples": 2,  # as above, so that nothing is compiled again
    "max_new_tokens": 5,
    "batch": 4,
  }
  texts = {"positive": ["w5 w6", "w7"], "negative": ["w8", "w9 w10", "w11"]}
  found = steering.compare(config, one, read, tmp_path, **options, **texts)
  assert artifacts.read_json(tmp_path / steering.RESULT) == found
  assert (tmp_path / steering.FIGURE).read_bytes()[:4] == b"\x89PNG"
  names = [method["name"] for method in found["methods"]]
  assert names == ["add", "clamp", "mean difference", "random direction"]
  assert {tuple(m["sites"]) for m in found["methods"]} == {("res.1",)}
  assert found["contrast"]["texts"] == [2, 3] and found["effects"] == ["latent"]
  assert found["unit"] == read.unit and len(found["rows"]) == 8
  assert found["model"]["weights_hash"] == one.lm.weights_hash
  with pytest.raises(ValueError, match="2 positive and 0 negative texts"):
    steering.compare(config, one, read, tmp_path, positive=["a", "b"])


@pytest.mark.parametrize(
  ("change", "latent", "error", "message"),
  [
    ({}, 12, ValueError, r"latent 12: this SAE has latents 0\.\.11"),
    ({"site": None}, 7, ValueError, "does not say at which site"),
    ({"site": "res.9"}, 7, ValueError, r"site res.9: .* has layers 0\.\.2"),
    ({"site": "att.0"}, 7, ValueError, "width 64, but att.0 .* width 40"),
    ({"provenance": '{"weights_hash": "x"}'}, 7, ValueError, "weights x"),
    (
      {"token_policy": TokenPolicy((2,), 0)},
      7,
      PolicyMismatchError,
      "token policy",
    ),
  ],
)
def test_what_does_not_fit_is_refused(
  config, one, tmp_path, change, latent, error, message
):
  gemma_scope.save(_sae(one.lm, **change), tmp_path)
  with pytest.raises(error, match=message):
    steering.find(config, tmp_path, latent)


def test_an_sae_that_does_not_say_its_site(config, one, path, tmp_path):
  bare = tmp_path / "params.npz"
  bare.write_bytes((path / "params.npz").read_bytes())
  with pytest.raises(ValueError, match="say it, as res.12=PATH"):
    steering.find(config, bare, 7)
  found = steering.find(config, f"res.1={bare}", 7)
  assert list(steering.edit(found, "add", 1.0, 2.0)) == ["res.1"]
  with pytest.raises(ValueError, match="was trained at res.1, not at res.2"):
    steering.find(config, f"res.2={path}", 7)


def test_too_little_text(config, one):
  short = config.copy_and_resolve_references()
  short.evaluate.sequences = 16
  with pytest.raises(ValueError, match="16 sequences of text: expected more"):
    steering.read_text(short, one)


def _run(*flags):
  command = [sys.executable, "-m", "experiments.steer", *flags]
  return subprocess.run(
    command, cwd=_ROOT, capture_output=True, text=True, check=False
  )


def test_flags_that_would_do_nothing_are_refused():
  base = ["--sae=nowhere", "--latent=7", "--prompt=w5"]
  expected = [
    (["--words=car"], "--words does nothing without --compare"),
    (["--strengths=1,2"], "--strengths does nothing without --compare"),
    (["--out=x"], "--out does nothing without --compare"),
    (["--positive=x"], "--positive does nothing without --compare"),
    (
      ["--compare", "--out=x", "--method=clamp"],
      "--method does nothing with --co",
    ),
    (
      ["--compare", "--out=x", "--strength=2"],
      "--strength does nothing with --co",
    ),
    (
      ["--method=ablate", "--strength=2"],
      "--strength does nothing with --method=abl",
    ),
    (["--method=ablate", "--unit=2"], "--unit does nothing with --method=abl"),
    (["--unit=3", "--text=demo"], "--text does nothing with --unit"),
    (["--samples=0"], "samples"),
    (["--unit=-5"], "--unit=-5.0: expected an activation above 0"),
    (["--unit=nan"], "--unit=nan: expected an activation above 0"),
  ]
  found = flag_errors.said("experiments.steer", [base + f for f, _ in expected])
  for message, (_, says) in zip(found, expected, strict=True):
    assert re.search(says, message), message


def test_the_command(model, text, path):
  done = _run(
    f"--sae={path}",
    "--latent=7",
    f"--lm={model}",
    f"--text=file:{text}",
    "--config=configs/quickstart.py",
    "--config.data.window=16",
    "--sequences=30",
    "--prompt=w5 w9",
    "--new_tokens=5",
    "--strength=3",
  )
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert lines[0].startswith("Strength 1 is an activation of ")
  assert lines[2].endswith("| add latent 7, strength 3")
  assert lines[4] == "> w5 w9" and "|" in lines[5]

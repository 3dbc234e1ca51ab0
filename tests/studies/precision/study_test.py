"""The study on a tiny model: exact where it must be, shared, resumed, honest."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from gemmascope_jax import artifacts
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig
from gemmascope_jax.studies import measure, site_means, splice
from gemmascope_jax.studies.precision import formats, speed, study
from gemmascope_jax.studies.subjects import by_site, subject
from tests.data import tiny_gemma
from tests.studies.precision.flips_test import tokens_of

POLICY, D, M = tiny_gemma.POLICY, tiny_gemma.CONFIG.width, 30


def _sae(seed=0, threshold=0.3, site="res.1", k=None, **config):
  rng = np.random.default_rng(seed)
  w = rng.normal(size=(M, D))
  w = (w / np.linalg.norm(w, axis=1, keepdims=True)).astype(np.float32)
  params = Params(
    w_enc=w.T.copy(),
    b_enc=np.zeros(M, np.float32),
    w_dec=w,
    b_dec=rng.normal(size=D).astype(np.float32) / 10,
    threshold=np.full(M, threshold, np.float32),
    w_skip=w[:D].copy() if "target_site" in config else None,
  )
  return SAE(params, SAEConfig(site=site, k=k, **config))


@pytest.fixture(scope="module", name="lm")
def _lm():
  return tiny_gemma.lm()


@pytest.fixture(scope="module", name="saes")
def _saes():
  return by_site(
    [
      subject(_sae(1, 0.0, k=4), "topk"),
      subject(_sae(2, 0.1, "mlp_in.1", target_site="mlp.1"), "skip"),
    ]
  )


def _run(lm, saes, folder, **options):
  return study.run(
    lm, saes, tokens_of(), POLICY, folder, batch=2, progress=False, **options
  )


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
  return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module", name="result")
def _result(lm, saes, folder):
  return _run(
    lm, saes, folder, lm_formats=("float32", "bfloat16", "float16", "int4")
  )


def _rows(sae, **wanted):
  return [
    row
    for row in sae["rows"]
    if all(row[key] == value for key, value in wanted.items())
  ]


def test_every_sae_is_measured_in_every_way(result):
  assert [sae["name"] for sae in result["saes"]] == ["topk", "skip"]
  for sae in result["saes"]:
    found = [(row["in_format"], row["format"]) for row in sae["rows"]]
    low = ["bfloat16", "float16", "int4"]
    assert found == (
      [("sae", f) for f in formats.FORMATS[1:]]
      + [("lm", "float32")]
      + [(where, f) for f in low for where in ("lm", "both")]
    )
    assert list(sae["bytes"]) == list(formats.FORMATS)
    sizes = list(sae["bytes"].values())
    assert sizes[0] == 2 * sizes[1] == 2 * sizes[2] > sizes[3] > sizes[4]
    assert all(s > 0 for s in sae["seconds_per_1024_tokens"].values())
  assert "model" not in result and "tokens" not in result
  json.dumps(result, allow_nan=False)


def test_the_model_in_float32_changes_nothing_at_all(result):
  for sae in result["saes"]:
    (row,) = _rows(sae, format="float32")
    for value in row["less_float32"].values():
      assert value["mean"] == 0 and value["stderr"] == 0
    assert row["flips"]["mean"] == 0
    assert {k: row[k] for k in sae["float32"]} == sae["float32"]


def test_an_sae_in_a_format_leaves_the_models_own_loss(result):
  for sae in result["saes"]:
    for row in _rows(sae, in_format="sae"):
      assert row["clean_loss"] == sae["float32"]["clean_loss"]
      assert row["less_float32"]["clean_loss"]["mean"] == 0
    for row in _rows(sae, in_format="lm", format="int4"):
      assert row["less_float32"]["clean_loss"]["mean"] != 0


def test_differences_are_those_of_the_metrics(result):
  for sae in result["saes"]:
    for row in sae["rows"]:
      for name, change in row["less_float32"].items():
        gap = row[name]["mean"] - sae["float32"][name]["mean"]
        assert change["mean"] == pytest.approx(gap, abs=1e-9)
        assert row["not_finite"] is None
  # Four bits are worse than eight, in what is paired as in what is counted.
  for sae in result["saes"]:
    eight, four = (
      _rows(sae, in_format="sae", format=f)[0] for f in ("int8", "int4")
    )
    assert four["flips"]["mean"] > eight["flips"]["mean"]
    size = lambda row: abs(row["less_float32"]["fvu"]["mean"])
    assert size(four) > size(eight)


def test_the_model_has_a_row_a_format(result, lm):
  found = {row["format"]: row for row in result["lm"]}
  assert list(found) == ["float32", "bfloat16", "float16", "int4"]
  assert found["float32"]["weights_hash"] == lm.weights_hash
  assert found["float32"]["clean_loss_less_float32"]["mean"] == 0
  assert found["int4"]["label"] == "tiny-0, int4"
  assert found["int4"]["bytes"] < found["bfloat16"]["bytes"]
  assert abs(found["int4"]["clean_loss_less_float32"]["mean"]) > 0


def test_float32_is_what_the_fidelity_study_measures(
  lm, saes, folder, result, monkeypatch
):
  def fail(*_, **__):
    raise AssertionError("measured again")

  monkeypatch.setattr(splice, "run_batch", fail)
  names, tokens = list(saes), tokens_of()
  options = dict(batch=2, progress=False)
  means = site_means.means(lm, names, tokens, POLICY, folder, **options)
  for site, subjects in saes.items():
    own = {s.name: s.replacement() for s in subjects}
    record, spliced = measure.measure(
      lm, site, own, tokens, POLICY, means[site], folder, **options
    )
    for sae in result["saes"]:
      if sae["site"] == site:
        delta = spliced[sae["name"]].delta_loss(record).to_dict()
        assert sae["float32"]["delta_loss"] == delta


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
  lm, tmp_path, monkeypatch
):
  saes = by_site([subject(_sae(), "sparse")])
  options = dict(formats=("bfloat16",), lm_formats=("bfloat16",))
  run, made = splice.run_batch, []

  def killed(*args, **named):
    made.append(args)
    if len(made) == 5:
      raise KeyboardInterrupt
    return run(*args, **named)

  monkeypatch.setattr(splice, "run_batch", killed)
  with pytest.raises(KeyboardInterrupt):
    _run(lm, saes, tmp_path, **options)
  found = _run(lm, saes, tmp_path, **options)
  assert len(made) == 5 + 2  # three batches of each of two models
  monkeypatch.setattr(speed, "_run", None)  # not timed again
  again = _run(lm, saes, tmp_path, **options)
  assert artifacts.json_bytes(again) == artifacts.json_bytes(found)
  assert len(made) == 7


def test_what_overflows_is_said_and_not_averaged(tmp_path):
  lm = tiny_gemma.lm()
  # BOS makes the stream larger than any number of float16.
  table = np.array(lm.params["embedder"]["embedding"])
  table[2] = 3e4
  params = {**lm.params, "embedder": {"embedding": table}}
  lm = dataclasses.replace(lm, params=params, weights_hash="large")
  saes = by_site([subject(_sae(), "sparse")])
  found = _run(
    lm, saes, tmp_path, formats=("float16",), lm_formats=("float16", "int8")
  )
  (sae,) = found["saes"]
  alone, broken, both, whole = sae["rows"]
  assert alone["not_finite"] is None and alone["delta_loss"]
  assert whole["format"] == "int8" and whole["delta_loss"]
  for row in (broken, both):
    assert row["flips"] is None
    assert row["not_finite"]["sequences"] == row["not_finite"]["of"] == 5
    assert "own loss is not finite" in row["not_finite"]["reason"]
    for name in ("delta_loss", "fvu", "l0", "clean_loss"):
      assert row[name] is None and row["less_float32"][name] is None
  assert found["lm"][1]["clean_loss"] is None
  artifacts.json_bytes(found)  # refuses what is not a number


def test_an_sae_that_overflows_is_said_to(lm, tmp_path):
  sae = _sae()
  large = sae.params.replace(w_enc=sae.params.w_enc * np.float32(1e5))
  saes = by_site([subject(sae.replace(params=large), "large")])
  found = _run(lm, saes, tmp_path, formats=("float16",), lm_formats=())
  ((row,),) = [each["rows"] for each in found["saes"]]
  assert row["delta_loss"] is row["fvu"] is row["l0"] is None
  assert row["clean_loss"] and row["not_finite"]["sequences"] == 5
  assert "the reconstruction is not finite" in row["not_finite"]["reason"]


def test_refusals(lm, saes, tmp_path):
  with pytest.raises(ValueError, match="int3"):
    _run(lm, saes, tmp_path, lm_formats=("int3",))
  low = jax.tree.map(lambda x: x.astype(np.float16), lm.params)
  with pytest.raises(ValueError, match="float16"):
    _run(dataclasses.replace(lm, params=low), saes, tmp_path)
  assert not list(tmp_path.iterdir())

"""The whole study on latents whose right score is known."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from gemmascope_jax.data.stores.harvest import harvest
from gemmascope_jax.studies.interpretability import study
from gemmascope_jax.studies.interpretability.chat import Cost
from gemmascope_jax.studies.interpretability.contexts import Design
from gemmascope_jax.studies.interpretability.gathering import gather
from gemmascope_jax.studies.interpretability.lm_simulator import LMSimulator
from gemmascope_jax.studies.interpretability.outcomes import Failure
from gemmascope_jax.studies.interpretability.token_statistics import (
  TokenStatistics,
)
from tests.data import tiny_gemma
from tests.studies.interpretability import gathering_test, planted

SAES = {
  "a": planted.sae("jumprelu", 1.0),
  "b": planted.sae("topk", 2.0),
  "random": planted.sae("jumprelu", 3.0),
}
PLANTED = {1.0: ("word",) * 8, 2.0: ("word",) * 8, 3.0: ("noise",) * 24}


def _gather(sae, planted_kinds=PLANTED):
  fill = float(sae.params.w_enc[0, 0])
  return planted.gathered(planted_kinds[fill], seed=int(fill))


class Other(TokenStatistics):
  """Token statistics that fail or stop in ways that a test asks for."""

  def __init__(self, spoil=lambda count: None, **options):
    super().__init__(**options)
    self.spoil, self.explained, self.contexts = spoil, 0, 0

  def explain(self, shown):
    self.explained += len(shown)
    return super().explain(shown)

  def simulate(self, explanation, tokens, keep):
    found = []
    for answer in super().simulate(explanation, tokens, keep):
      self.contexts += 1
      spoilt = self.spoil(self.contexts)
      found.append(answer if spoilt is None else spoilt)
    return found


def _run(folder, simulator=None, explainer=None, saes=SAES, **options):
  options = dict(untrained=["random"], progress=False) | options
  if "random" not in saes:
    options["untrained"] = []
  return study.run(
    saes,
    options.pop("gather", _gather),
    explainer or TokenStatistics(),
    simulator or TokenStatistics(),
    folder,
    **options,
  )


def test_planted_latents_score_high_and_noise_near_zero(tmp_path):
  result = _run(tmp_path)
  assert json.loads(json.dumps(result)) == result  # JSON as it is
  assert (result["study"], result["format"]) == ("interpretability", 1)
  by_name = {sae["name"]: sae for sae in result["saes"]}
  for name in ("a", "b"):
    assert by_name[name]["score"]["mean"] > 0.999
    assert by_name[name]["well_simulated"]["mean"] == 1
    assert by_name[name]["detection"]["mean"] == 1
    assert by_name[name]["fuzzing"]["mean"] == 1
  noise = by_name["random"]["score"]
  assert abs(noise["mean"]) < 3 * noise["stderr"] < 0.2
  for key in ("detection", "fuzzing"):
    value = by_name["random"][key]
    assert abs(value["mean"] - 0.5) < 3.5 * value["stderr"] < 0.25
  shuffled = [by_name[name]["shuffled_activations"] for name in by_name]
  for value in shuffled:
    assert abs(value["mean"]) < 3.5 * value["stderr"]
  names = [group["family"] for group in result["families"]]
  assert names == ["jumprelu", "topk", "untrained"]
  assert [(d["a"], d["b"]) for d in result["differences"]] == [
    ("jumprelu", "topk"),
    ("jumprelu", "untrained"),
    ("topk", "untrained"),
  ]
  assert by_name["a"]["coverage"] == {
    "latents": 8,
    "scored": 8,
    "contexts": 96,
    "simulated": 96,
    "unscored": {},
    "failed_contexts": {},
  }


def test_another_latents_explanation_does_not_fit(tmp_path):
  """Every latent has its own word; explanations go round."""

  def gathered(sae):
    found = planted.gathered(("word",) * 6)
    samples = []
    for i, sample in enumerate(found.samples):
      move = lambda part, by=i: dataclasses.replace(
        part, tokens=(part.tokens + 100 * by).astype(np.int32)
      )
      samples.append(
        dataclasses.replace(
          sample, shown=move(sample.shown), held_out=move(sample.held_out)
        )
      )
    return dataclasses.replace(found, samples=samples)

  result = _run(tmp_path, gather=gathered, saes={"a": SAES["a"]})
  (sae,) = result["saes"]
  assert sae["score"]["mean"] > 0.999
  # Predicting nothing anywhere explains nothing: 0, not missing.
  assert sae["shuffled_explanation"]["mean"] == 0
  assert sae["above_other_explanation"]["mean"] > 0.999
  others = [row["shuffled_explanation"]["of"] for row in sae["latents"]]
  assert sorted(others) == list(range(6))
  assert all(
    row["latent"] != o for row, o in zip(sae["latents"], others, strict=True)
  )
  alone = _run(
    tmp_path,
    gather=gathered,
    saes={"a": SAES["a"]},
    shuffled_explanations=False,
  )
  assert alone["saes"][0]["shuffled_explanation"] is None


def test_failures_lower_the_coverage_and_not_the_score(tmp_path):
  whole = _run(tmp_path / "whole", saes={"a": SAES["a"]})["saes"][0]

  def spoil(count):
    return Failure(("parse", "refusal")[count % 2], "garbage") if (
      count % 3 == 0
    ) else None  # fmt: skip

  partly = _run(tmp_path / "partly", Other(spoil), saes={"a": SAES["a"]})
  found = partly["saes"][0]
  assert found["score"]["mean"] > 0.999
  assert whole["coverage"]["simulated"] == 96
  assert found["coverage"]["simulated"] == 64
  failed = found["coverage"]["failed_contexts"]
  assert sum(failed.values()) == 32 and set(failed) == {"parse", "refusal"}
  assert found["coverage"]["scored"] == 8


def test_latents_without_an_answer_are_missing_by_kind(tmp_path):
  class Shy(TokenStatistics):
    def explain(self, shown):
      found = super().explain(shown)
      found[1] = Failure("refusal", "no")
      found[2] = Failure("parse", "...")
      return found

  broken = Other(lambda count: Failure("parse", "?") if count <= 12 else None)
  result = _run(
    tmp_path,
    broken,
    Shy(),
    saes={"a": SAES["a"]},
    shuffled_explanations=False,
  )
  (sae,) = result["saes"]
  statuses = [row["status"] for row in sae["latents"]]
  assert statuses == ["parse", "refusal", "parse"] + ["scored"] * 5
  assert sae["score"]["n"] == 5 and sae["score"]["mean"] > 0.999
  assert sae["coverage"]["unscored"] == {"parse": 2, "refusal": 1}
  assert sae["latents"][1]["explanation"] is None


def test_a_latent_whose_active_contexts_all_failed_is_undefined(tmp_path):
  """Nothing to correlate with is no score, rather than a zero."""

  class OnlySilence(TokenStatistics):
    def simulate(self, explanation, tokens, keep):
      found = super().simulate(explanation, tokens, keep)
      fires = ((tokens == planted.WORD) & keep).any(axis=1)
      return [
        Failure("parse", "") if bad else answer
        for bad, answer in zip(fires, found, strict=True)
      ]

  (sae,) = _run(tmp_path, OnlySilence(), saes={"a": SAES["a"]})["saes"]
  assert sae["score"] is None and sae["median"] is None
  assert sae["coverage"]["unscored"] == {"undefined": 8}
  assert sae["coverage"]["scored"] == 0


def test_a_run_that_was_killed_goes_on_with_the_next_latent(tmp_path):
  class Killed(Exception):
    pass

  def die(count):
    if count > 100:
      raise Killed

  expected = _run(tmp_path / "whole")
  first = Other(die)
  with pytest.raises(Killed):
    _run(tmp_path / "killed", first)
  second, explainer = Other(), Other()
  result = _run(tmp_path / "killed", second, explainer)
  assert result == expected
  # Two SAEs' explanations were there, and the first one's simulations: one a
  # latent, as all words' explanations are equal. Noise has two a latent.
  assert explainer.explained == 24
  assert second.contexts == 8 * 12 + 24 * 12 * 2
  third = Other()
  assert _run(tmp_path / "killed", third, explainer) == expected
  assert third.contexts == 0 and explainer.explained == 24


def test_only_lost_requests_are_asked_again(tmp_path):
  one = {"a": SAES["a"]}
  for kind, again in (("transport", 96), ("parse", 0)):
    bad = lambda count, kind=kind: (
      Failure(kind, "") if count % 12 == 0 else None
    )
    options = dict(saes=one, shuffled_explanations=False)
    result = _run(tmp_path / kind, Other(bad), **options)
    assert result["saes"][0]["coverage"]["failed_contexts"] == {kind: 8}
    better = Other()
    _run(tmp_path / kind, better, **options)
    assert better.contexts == again


def test_a_simulator_that_breaks_its_word_is_an_error(tmp_path):
  one = dict(saes={"a": SAES["a"]})
  with pytest.raises(ValueError, match="predicted NaN or an infinity"):
    _run(tmp_path, Other(lambda count: np.full(24, np.nan)), **one)
  with pytest.raises(ValueError, match=r"shape \(3,\) for a context of 24"):
    _run(tmp_path, Other(lambda count: np.ones(3)), **one)
  short = Other()
  short.simulate = lambda *args: []
  with pytest.raises(ValueError, match="0 predictions for 12 contexts"):
    _run(tmp_path, short, **one)
  silent = Other()
  silent.explain = lambda shown: []
  with pytest.raises(ValueError, match="0 answers for 8 latents"):
    _run(tmp_path / "silent", explainer=silent, **one)


def test_the_simulator_is_not_given_the_activations(tmp_path):
  seen = []

  class Watching(TokenStatistics):
    def simulate(self, explanation, tokens, keep):
      seen.append((tokens.dtype.kind, keep.dtype))
      return super().simulate(explanation, tokens, keep)

  _run(tmp_path, Watching())
  assert set(seen) == {("i", np.dtype(bool))}


def test_it_stops_before_it_costs_too_much(tmp_path):
  class Dear(Other):
    def __init__(self, dollars):
      super().__init__()
      self.dollars = dollars

    def cost(self, samples):
      return Cost(len(samples), 100, 10, self.dollars)

  dear = Dear(2.0)
  with pytest.raises(
    study.TooExpensiveError, match="6.00 dollars .*120 requests"
  ):
    _run(tmp_path, dear, dear, most_dollars=5)
  assert dear.explained == dear.contexts == 0
  with pytest.raises(study.TooExpensiveError, match="prices are not known"):
    _run(tmp_path, Dear(None), most_dollars=5)
  result = _run(tmp_path, dear, dear, most_dollars=6)
  assert result["cost"]["dollars"] == 6
  assert _run(tmp_path)["cost"] is None


def test_names_that_are_not_there_are_refused(tmp_path):
  with pytest.raises(ValueError, match="'x' among `untrained`.* 'a', 'b'"):
    _run(tmp_path, untrained=["x"])
  with pytest.raises(ValueError, match="no SAE: expected"):
    _run(tmp_path, saes={}, untrained=[])
  nothing = lambda sae: dataclasses.replace(_gather(sae), samples=[])
  with pytest.raises(ValueError, match="no latent of any SAE fires in enough"):
    _run(tmp_path, gather=nothing)


def test_partners_are_others_and_each_is_used_once():
  found = study.partners([True, False, True, True, True], 0)
  assert found[1] is None
  assert sorted(x for x in found if x is not None) == [0, 2, 3, 4]
  assert all(i != x for i, x in enumerate(found))
  assert study.partners([False, True], 0) == [None, None]


def test_a_real_store_and_a_real_gemma(tmp_path):
  lm = tiny_gemma.lm()
  store = harvest(
    lm,
    tiny_gemma.windows(),
    ("res.1",),
    tmp_path / "store",
    tiny_gemma.POLICY,
    rows=900,
    progress=False,
  )
  design = Design(latents=3, length=8, explain=3, top=2, quantile=2, random=3)

  class Words(TokenStatistics):
    def explain(self, shown):
      return [f"text {len(each)}" for each in shown]

  result = study.run(
    {"sae": gathering_test._sae(store)},
    functools.partial(gather, store=store, design=design, progress=False),
    Words(),
    LMSimulator(lm, batch=7),
    tmp_path / "answers",
    progress=False,
  )
  (sae,) = result["saes"]
  assert sae["coverage"]["scored"] == 3
  assert sae["coverage"]["simulated"] == 21
  # A random model knows nothing of the latents.
  assert abs(sae["score"]["mean"]) < 0.5
  assert result["contexts"] == {
    "shown": 3,
    "held_out": {"top": 2, "quantile": 2, "random": 3},
    "length": 8,
  }

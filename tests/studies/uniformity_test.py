"""r_L0 where it is planted, against finite differences, and however batched."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from gemmascope_jax import gemma
from gemmascope_jax.gemma import sites
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig
from gemmascope_jax.studies import attribution, uniformity
from tests.data import tiny_gemma
from tests.gemma import slow_model

SITE = "res.1"
CONFIG = dataclasses.replace(
  tiny_gemma.CONFIG, attn_softcap=2.0, final_softcap=3.0, window=4
)


@pytest.fixture(scope="module", name="lm")
def _lm():
  return dataclasses.replace(tiny_gemma.lm(), config=CONFIG)


def _tokens(sequences=5, length=9, seed=0):
  tokens = np.random.default_rng(seed).integers(4, 200, (sequences, length))
  tokens[:, 0] = 2
  return tokens.astype(np.int32)


def _sae(seed=0, latents=24, site=SITE, threshold=0.1, **config):
  width = sites.site_width(CONFIG, site)
  rng = np.random.default_rng(seed)
  w_dec = rng.normal(size=(latents, width)).astype(np.float32)
  w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
  params = Params(
    w_enc=w_dec.T.copy(),
    b_enc=rng.normal(0, 0.1, latents).astype(np.float32),
    w_dec=w_dec,
    b_dec=rng.normal(0, 0.1, width).astype(np.float32),
    threshold=np.full(latents, threshold, np.float32),
  )
  return SAE(params, SAEConfig(site=site, **config))


def _planted(effects):
  """Eight latents of one direction, these always active with these effects."""
  effects = np.array([*effects, *[0] * (8 - len(effects))], np.float32)
  direction = np.random.default_rng(4).normal(size=12).astype(np.float32)
  params = Params(
    w_enc=np.zeros((12, len(effects)), np.float32),
    b_enc=effects,
    w_dec=np.tile(direction, (len(effects), 1)),
    b_dec=np.zeros(12, np.float32),
    threshold=np.zeros(len(effects), np.float32),
  )
  return SAE(params, SAEConfig(site=SITE))


def _run(lm, saes, tokens=None, **options):
  tokens = _tokens() if tokens is None else tokens
  return uniformity.run(
    lm, {SITE: saes}, tokens, **{"progress": False, "batch": 5} | options
  )


def test_planted_effects_give_the_r_l0_that_was_planted(lm):
  cases = {
    "equal": ([1.0] * 6, 1.0),
    "alone": ([2.0], 1.0),
    "one has all": ([1e7] + [1.0] * 7, 1 / 8),
    "three to one": ([3.0, 1.0], 4 / 3**0.75 / 2),
    "half of them": ([1.0] * 4 + [1e-8] * 4, 1 / 2),
  }
  saes = {name: _planted(effects) for name, (effects, _) in cases.items()}
  result = _run(lm, saes)
  assert (result["study"], result["format"]) == ("uniformity", 1)
  assert json.loads(json.dumps(result)) == result
  for row in result["rows"]:
    effects, expected = cases[row["name"]]
    assert row["l0"]["mean"] == len(effects)
    assert row["r_l0"]["mean"] == pytest.approx(expected, rel=1e-4)
    assert row["r_l0"]["n"] == 5
    assert row["effective_latents"]["mean"] == pytest.approx(
      expected * len(effects), rel=1e-4
    )
    # BOS is not counted, and the last token predicts nothing.
    assert row["tokens"] == 5 * 7
    assert (row["silent_tokens"], row["flat_tokens"]) == (0, 0)


def _reference(lm, site, sae, tokens, target, at, softcap):
  """(row's means, number of silent tokens) in float64, moving each latent."""
  f = lambda x: np.asarray(x, np.float64)
  w_dec, policy = f(sae.params.w_dec), tiny_gemma.POLICY
  kept, counted = policy.keep(tokens), policy.keep_loss(tokens)
  cap = CONFIG.final_softcap if softcap else None

  def encode(x):
    pre = x @ f(sae.params.w_enc) + f(sae.params.b_enc)
    return np.where(pre > sae.params.threshold, np.maximum(pre, 0), 0)

  def base(x):
    x_hat = encode(x) @ w_dec + f(sae.params.b_dec)
    return np.where(kept[:, :, None], x_hat, x) if at == "x_hat" else x

  def attributable(t, move):
    def edit(x):
      x = base(x)
      x[:, t] += move
      return x

    logits, _ = slow_model.forward(lm.config, lm.params, tokens, {site: edit})
    logits = slow_model.soft_cap(logits[:, :-1], cap)
    right = np.take_along_axis(logits, tokens[:, 1:, None], axis=2)[..., 0]
    centred = (right - logits.mean(axis=2)) * counted
    return centred[:, t] if target == "own" else centred[:, t:].sum(axis=1)

  _, acts = slow_model.forward(lm.config, lm.params, tokens)
  latents, step = encode(acts[site]), 1e-5
  sums = {"l0": [], "r_l0": [], "effective_latents": []}
  for t in range(tokens.shape[1] - 1):
    along = [
      (attributable(t, step * d) - attributable(t, -step * d)) / (2 * step)
      for d in w_dec
    ]
    for s in np.flatnonzero(counted[:, t]):
      size = np.abs(latents[s, t] * np.stack(along, axis=1)[s])
      sums["l0"].append((latents[s, t] > 0).sum())
      if not sums["l0"][-1]:
        continue
      p = size[size > 0] / size.sum()
      effective = np.exp(-(p * np.log(p)).sum())
      sums["r_l0"].append(effective / (size > 0).sum())
      sums["effective_latents"].append(effective)
  silent = sums["l0"].count(0)
  return {key: np.mean(values) for key, values in sums.items()}, silent


@pytest.mark.parametrize(
  ("site", "target", "at", "softcap"),
  [
    ("res.0", "own", "x", True),
    ("mlp.1", "all", "x_hat", True),
    ("att.1", "all", "x", False),
  ],
)
def test_runs_equal_finite_differences_in_float64(
  lm, site, target, at, softcap
):
  tokens, sae = _tokens(3, 7), _sae(site=site, threshold=0.3, latents=10)
  options = dict(target=target, at=at, softcap=softcap)
  result = uniformity.run(
    lm, {site: {"a": sae}}, tokens, progress=False, batch=3, **options
  )
  expected, silent = _reference(lm, site, sae, tokens, **options)
  assert 1.5 < expected["effective_latents"] < 0.9 * expected["l0"]
  (row,) = result["rows"]
  for key, value in expected.items():
    assert row[key]["mean"] == pytest.approx(value, rel=1e-4), key
  assert row["silent_tokens"] == silent
  assert {key: result[key] for key in options} == options


def test_the_slow_model_is_the_model(lm):
  tokens = _tokens(2, 9)
  taps = ("att.0", "mlp.1", "res.2")
  run = jax.jit(lambda *args: gemma.forward(lm.config, *args, taps=taps))
  ours = run(lm.params, tokens)
  logits, acts = slow_model.forward(lm.config, lm.params, tokens)
  logits = slow_model.soft_cap(logits, CONFIG.final_softcap)
  np.testing.assert_allclose(ours.logits, logits, atol=1e-5)
  for site in taps:
    np.testing.assert_allclose(ours.acts[site], acts[site], atol=1e-5)


def _numbers(result):
  """Everything of a result's rows and trends that is a measured number."""
  found = []
  for row in (*result["rows"], *result["trends"]):
    for value in row.values():
      if isinstance(value, dict):
        found += [value["mean"], value["stderr"], value["n"]]
      elif isinstance(value, (int, float)):
        found.append(value)
  return np.array(found, float)


def test_batch_size_and_order_of_sequences_change_nothing(lm):
  saes = {"a": _sae(0), "b": _sae(1, threshold=0.4)}
  base = _run(lm, saes)
  assert len(base["trends"]) == 1 and base["trends"][0]["saes"] == 2
  order = np.array([3, 0, 4, 1, 2])
  for batch, tokens in ((2, None), (5, _tokens()[order])):
    found = _run(lm, saes, tokens, batch=batch)
    np.testing.assert_allclose(_numbers(found), _numbers(base), rtol=1e-5)


@pytest.fixture(name="measured")
def _measured(monkeypatch):
  """Batches that are measured; a test may say after how many to stop."""
  seen, batch_sums = {"batches": [], "stop": None}, attribution.batch_sums

  def watched(lm, site, saes, tokens, *args):
    if seen["stop"] == len(seen["batches"]):
      raise KeyboardInterrupt
    seen["batches"].append((sorted(saes), tokens[0, 1]))
    return batch_sums(lm, site, saes, tokens, *args)

  monkeypatch.setattr(attribution, "batch_sums", watched)
  return seen


def test_a_killed_run_goes_on_and_measures_nothing_twice(
  lm, tmp_path, measured
):
  saes = {"a": _sae(0), "b": _sae(1, threshold=0.4)}
  whole = json.dumps(_run(lm, saes, batch=2, folder=tmp_path / "whole"))
  once = list(measured["batches"])
  assert len(once) == 3
  measured.update(batches=[], stop=2)
  with pytest.raises(KeyboardInterrupt):
    _run(lm, saes, batch=2, folder=tmp_path / "killed")
  measured["stop"] = None
  found = json.dumps(_run(lm, saes, batch=2, folder=tmp_path / "killed"))
  assert measured["batches"] == once
  assert found == whole
  files = [sorted((tmp_path / f).iterdir()) for f in ("whole", "killed")]
  assert len(files[0]) == 3
  for one, other in zip(*files, strict=True):
    assert one.name == other.name
    assert one.read_bytes() == other.read_bytes()
  # Done, it measures nothing; a broken part alone is measured again.
  assert json.dumps(_run(lm, saes, batch=2, folder=tmp_path / "whole")) == whole
  files[0][1].write_bytes(files[0][1].read_bytes()[:-40])
  assert json.dumps(_run(lm, saes, batch=2, folder=tmp_path / "whole")) == whole
  assert measured["batches"] == [*once, once[1]]


def test_what_was_measured_of_something_else_is_not_taken(
  lm, tmp_path, measured
):
  saes = {"a": _sae(0)}
  run = lambda saes=saes, **options: _run(lm, saes, folder=tmp_path, **options)
  run()
  for number, again in enumerate(
    (
      lambda: run({"a": _sae(1)}),
      lambda: run(target="all"),
      lambda: run(at="x_hat"),
      lambda: run(softcap=False),
      lambda: run(tokens=_tokens(seed=1)),
    ),
    2,
  ):
    again()
    assert len(measured["batches"]) == number


def test_silent_saes_have_no_r_l0_and_no_part_in_a_trend(lm):
  never = _sae(0, threshold=1e9)
  saes = {"a": _sae(0), "never": never, "b": _sae(1, threshold=0.4)}
  result = _run(lm, saes)
  row = result["rows"][1]
  assert row["r_l0"] is row["effective_latents"] is None
  assert row["silent_tokens"] == row["tokens"] == 35
  assert [trend["saes"] for trend in result["trends"]] == [2]


def test_what_does_not_fit_is_refused(lm):
  with pytest.raises(ValueError, match="target 'next', at 'x': expected"):
    _run(lm, {"a": _sae()}, target="next")
  with pytest.raises(ValueError, match="at 'y': expected"):
    _run(lm, {"a": _sae()}, at="y")
  with pytest.raises(ValueError, match="no SAE: expected at least one"):
    _run(lm, {})
  with pytest.raises(ValueError, match="res.0"):
    _run(lm, {"a": dataclasses.replace(_sae(), config=SAEConfig(site="res.0"))})


L0S = (10.0, 30.0, 90.0)


def planted_result(groups, sequences=50, noise=0.01, seed=0, l0s=None):
  """A result as of a run, with r_L0 = level + slope log10(L0 / 30).

  Args:
    groups: (site, width) -> (slope, level).
    sequences: how many; each has 40 tokens.
    noise: of each sequence's r_L0, half of it the same for all SAEs.
    seed: of the noise.
    l0s: width -> L0s of its SAEs, where they are others than `L0S`.
  """
  rng = np.random.default_rng(seed)
  text = rng.normal(0, noise, sequences)
  rows, records = [], []
  for (site, width), (slope, level) in groups.items():
    for l0 in (l0s or {}).get(width, L0S):
      r = level + slope * np.log10(l0 / 30) + text
      r = r + rng.normal(0, noise, sequences)
      count = np.full(sequences, 40.0)
      sums = dict.fromkeys(attribution.SUMS, np.zeros(sequences))
      sums |= {"count": count, "measured": count, "active": l0 * count}
      sums |= {"r": r * count, "effective": l0 * r * count}
      records.append(sums)
      sae = _sae(latents=width, site=site)
      rows.append(uniformity._row(site, f"L0 {l0:g}", sae, sums))
  return {
    "study": "uniformity",
    "format": 1,
    "model": {"label": "tiny", "weights_hash": "0"},
    "target": "own",
    "at": "x",
    "softcap": True,
    "tokens": {"sequences": sequences, "length": 42},
    "rows": rows,
    "trends": uniformity.trends(rows, records),
  }


def test_trends_are_the_least_squares_line_with_the_error_of_sequences():
  errors = []
  for seed in range(100):
    (trend,) = planted_result({(SITE, 8): (-0.1, 0.6)}, seed=seed)["trends"]
    slope = trend["slope"]
    errors.append((slope["mean"] + 0.1) / slope["stderr"])
  assert 0.8 < np.std(errors) < 1.2  # as large as they say
  result = planted_result({(SITE, 8): (-0.1, 0.6)})
  (trend,) = result["trends"]
  x = np.log10([row["l0"]["mean"] for row in result["rows"]])
  y = [row["r_l0"]["mean"] for row in result["rows"]]
  slope, level = np.polyfit(x - x.mean(), y, 1)
  assert trend["slope"]["mean"] == pytest.approx(slope, rel=1e-9)
  assert trend["level"]["mean"] == pytest.approx(level, rel=1e-9)
  assert trend["level_l0"] == pytest.approx(30)
  assert trend["saes"] == 3


def test_levels_of_two_widths_are_compared_at_one_l0():
  """Wider SAEs at twice the L0s are on the same line, or 0.1 below it."""
  options = {"l0s": {16: (20.0, 60.0, 180.0)}}
  for drop, verdict in ((0.0, "agrees"), (0.1, "disagrees")):
    groups = {(SITE, 8): (-0.3, 0.6), (SITE, 16): (-0.3, 0.6 - drop)}
    one, other = planted_result(groups, **options)["trends"]
    assert one["level_l0"] == other["level_l0"]
    assert one["level_l0"] == pytest.approx(30 * 2**0.5)
    gap = one["level"]["mean"] - other["level"]["mean"]
    assert gap == pytest.approx(drop, abs=0.005)
    assert _verdicts(groups, **options)[2] == verdict


def _verdicts(groups, **options):
  found = uniformity.findings(planted_result(groups, **options))
  assert {finding.figure for finding in found} == {"16"}
  return [finding.verdict for finding in found]


RES, MLP = ("res.1", 8), ("mlp.1", 8)


@pytest.mark.parametrize(
  ("res", "mlp", "expected"),
  [
    (-0.15, -0.08, "agrees"),  # falls everywhere
    (0.15, 0.08, "agrees"),  # rises everywhere
    (0.0, 0.0, "disagrees"),  # flat
    (-0.15, 0.08, "disagrees"),  # both ways
    (0.15, 0.0, "too little data"),  # rises, and may be flat elsewhere
  ],
)
def test_directions_are_seen_whichever_way_they_go(res, mlp, expected):
  groups = {RES: (res, 0.6), MLP: (mlp, 0.6)}
  assert _verdicts(groups)[0] == expected
  words = uniformity.findings(planted_result(groups))[0].seen
  for slope, part in zip((res, mlp), words.split("; "), strict=True):
    if slope:
      assert ("rises" if slope > 0 else "falls") in part


def test_noise_hides_what_there_is():
  groups = {RES: (-0.05, 0.6), MLP: (-0.03, 0.6), ("res.1", 16): (-0.05, 0.6)}
  assert _verdicts(groups, noise=1.0) == ["too little data"] * 3
  assert _verdicts({}) == ["too little data"] * 3
  alone = planted_result(groups, sequences=1)
  assert {f.verdict for f in uniformity.findings(alone)} == {"too little data"}


@pytest.mark.parametrize(
  ("res", "mlp", "expected"),
  [
    (-0.15, -0.05, "agrees"),
    (-0.05, 0.15, "disagrees"),  # the size counts, not the sign
    (-0.1, -0.1, "too little data"),
  ],
)
def test_the_strongest_trend_is_at_the_residual_stream_or_is_not(
  res, mlp, expected
):
  assert _verdicts({RES: (res, 0.6), MLP: (mlp, 0.6)})[1] == expected


@pytest.mark.parametrize(
  ("gap", "noise", "expected"),
  [
    (0.0, 0.01, "agrees"),
    (0.02, 0.01, "agrees"),
    (-0.1, 0.01, "disagrees"),
    (0.05, 0.1, "too little data"),
  ],
)
def test_widths_are_alike_or_are_not(gap, noise, expected):
  groups = {RES: (-0.1, 0.6), ("res.1", 16): (-0.1, 0.6 + gap)}
  assert _verdicts(groups, noise=noise)[2] == expected
  # Widths of different sites are not compared.
  apart = {RES: (-0.1, 0.6), ("mlp.1", 16): (-0.1, 0.6 + gap)}
  assert _verdicts(apart, noise=noise)[2] == "too little data"

"""Ladders in which it is known what becomes of every latent."""

import json

import numpy as np
import pytest

from gemmascope_jax.studies import width
from gemmascope_jax.studies.findings import AGREES, DISAGREES, UNCLEAR
from tests.studies.activity import rows as made

NARROW, SITE = 4, "res.1"
# Coordinates: four that the narrow SAE has, two that it lacks, and a sign that
# says which of two children fires.
DIMS = 7
FAR = 100.0


@pytest.fixture(scope="module", name="store")
def _store():
  rng = np.random.default_rng(0)
  x = np.abs(rng.normal(size=(2_000, DIMS))) + 0.1
  x[:, :6] *= rng.random((2_000, 6)) < [0.5, 0.4, 0.3, 0.2, 0.1, 0.1]
  x[:, 6] = rng.choice([-1.0, 1.0], 2_000)
  return made.Rows(x, [50] * 40)


def _sae(latents, coefficient=1e-3):
  """From (coordinate, sign) pairs; sign 0: fires whatever the sign is."""
  w_enc = np.zeros((DIMS, len(latents)))
  w_dec = np.zeros((len(latents), DIMS))
  bias = np.zeros(len(latents))
  for i, (coordinate, sign) in enumerate(latents):
    w_enc[coordinate, i] = w_dec[i, coordinate] = 1
    w_enc[6, i] += FAR * sign
    bias[i] = -FAR * abs(sign)
  provenance = json.dumps({"recipe": {"sparsity_coefficient": coefficient}})
  found = made.sae(w_enc, w_dec, threshold=0.05, provenance=provenance)
  params = found.params.replace(b_enc=bias.astype(np.float32))
  return found.replace(params=params)


OWN = [(i, 0) for i in range(NARROW)]


def _run(store, saes, **options):
  return width.run(saes, store, SITE, progress=False, **options)


def _shares(result):
  (ladder,) = result["ladders"]
  (step,) = ladder["steps"]
  classes = {k: v["mean"] for k, v in step["classes"].items() if v["mean"]}
  return classes, step


def test_split_latents_are_found_and_fire_on_halves(store):
  halves = [(i, sign) for i in range(NARROW) for sign in (-1, 1)]
  saes = {"narrow": _sae(OWN), "wide": _sae(halves)}
  result = _run(store, saes)
  classes, step = _shares(result)
  assert classes == {"split": 1.0}
  assert step["familiar"]["mean"] == 1 and step["lost"]["mean"] == 0
  rates = step["cofiring"]["split"]
  assert rates["narrow_given_wide"] == [1.0, 1.0, 1.0]
  x, sign = store.x, store.x[:, 6] > 0
  exact = [
    (sign[x[:, i] > 0] == half).mean() for i in range(4) for half in (0, 1)
  ]
  assert rates["wide_given_narrow"] == pytest.approx(
    list(np.percentile(exact, (25, 50, 75)))
  )


def test_directions_that_the_narrow_sae_lacks_are_novel(store):
  saes = {"narrow": _sae(OWN), "wide": _sae([*OWN, (4, 0), (5, 0)])}
  classes, step = _shares(_run(store, saes))
  assert classes == pytest.approx({"kept": 4 / 6, "novel": 2 / 6})
  assert step["familiar"]["mean"] == pytest.approx(4 / 6)


def test_the_same_sae_twice_and_a_dead_latent(store):
  saes = {"narrow": _sae(OWN), "wide": _sae([*OWN, (4, 9)])}
  params = saes["wide"].params
  b_enc = np.asarray(params.b_enc).copy()
  b_enc[4] = -1e6
  saes["wide"] = saes["wide"].replace(params=params.replace(b_enc=b_enc))
  classes, step = _shares(_run(store, saes))
  assert classes == pytest.approx({"kept": 0.8, "dead": 0.2})
  assert step["cofiring"]["kept"]["jaccard"] == [1.0, 1.0, 1.0]
  assert step["cofiring"]["split"]["jaccard"] is None


def test_rotated_directions_are_unmatched(store):
  turn = np.array(
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
  )
  turned = _sae([*OWN, (4, 0)])
  w_dec = np.zeros((5, DIMS), np.float32)
  w_dec[:4, :4], w_dec[4, 6] = turn / 2, 1
  turned = turned.replace(params=turned.params.replace(w_dec=w_dec))
  classes, step = _shares(_run(store, {"a": _sae(OWN), "b": turned}))
  assert "split" not in classes and "kept" not in classes
  assert step["familiar"]["mean"] == 0 and step["lost"]["mean"] == 1


def test_the_size_of_blocks_says_nothing(store, tmp_path):
  saes = {"narrow": _sae(OWN), "wide": _sae([*OWN, (4, 0), (5, 1)])}
  one = _run(store, saes, arrays=tmp_path / "one.npz")
  other = _run(store, saes, block=37, arrays=tmp_path / "two.npz")
  with np.load(tmp_path / "one.npz") as a, np.load(tmp_path / "two.npz") as b:
    assert set(a) == set(b)
    for name in a:
      np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6)
  for key in ("fvu", "l0", "frequency"):
    for p, q in zip(one["saes"], other["saes"], strict=True):
      if isinstance(p.get(key), dict):
        assert p[key]["mean"] == pytest.approx(q[key]["mean"], rel=1e-5)
  json.dumps(one, allow_nan=False)


def test_numbers_of_each_sae_are_dense_ones(store):
  saes = {"narrow": _sae(OWN), "wide": _sae([*OWN, (4, 0), (5, 0)])}
  loss = {"wide": {"mean": 0.2, "stderr": 0.1, "n": 5}}
  result = _run(store, saes, delta_loss=loss)
  x = store.x.astype(np.float64)
  for row in result["saes"]:
    error = np.square(x - np.asarray(saes[row["name"]](store.x))).sum()
    fvu = error / np.square(x - x.mean(0)).sum()
    assert row["fvu"]["mean"] == pytest.approx(fvu, rel=1e-5)
  assert result["saes"][1]["delta_loss"] == loss["wide"]
  assert "refused" in result["ladders"][0]["law"]  # two widths only
  verdicts = [f.verdict for f in width.findings(result)]
  assert set(verdicts) <= {AGREES, DISAGREES, UNCLEAR}


def test_what_makes_no_ladder_is_refused(store):
  one = {"narrow": _sae(OWN), "wide": _sae([*OWN, (4, 0)], 2e-3)}
  with pytest.raises(ValueError, match="make no ladder"):
    _run(store, one)
  with pytest.raises(ValueError, match=r"widths \[5, 4\]: expected at least"):
    _run(store, one, ladders={"x": ["wide", "narrow"]})
  with pytest.raises(ValueError, match="names 'other', which is none of"):
    _run(store, one, ladders={"x": ["narrow", "other"]})
  with pytest.raises(ValueError, match="cofiring_rows 0"):
    both = {"x": ["narrow", "wide"]}
    _run(store, one, ladders=both, cofiring_rows=0)

"""Ratings read back, refused where wrong, and counted with honest intervals."""

import json

import numpy as np
import pytest
from scipy import stats

from gemmascope_jax.studies.estimate import Estimate, ratio
from gemmascope_jax.studies.interpretability import ratings
from gemmascope_jax.studies.interpretability.ratings import Rating, RatingError

KEY = {
  "sheet": "s1",
  "items": {
    "aa": {"sae": "x", "family": "topk", "latent": 5},
    "bb": {"sae": "y", "family": "gated", "latent": 6},
  },
}
HEAD = "sheet,item,rater,label\n"


def _write(path, *lines, head=HEAD):
  path.write_text(head + "".join(f"{line}\n" for line in lines))
  return path


def test_ratings_are_traced_to_their_latents(tmp_path):
  paths = [
    _write(tmp_path / "a.csv", "s1,aa,Ann,yes", "s1,bb,Ann,"),
    _write(
      tmp_path / "b.csv",
      "s1;aa;;NO;=x",
      head="\ufeffsheet;item;rater;label;explanation\n",
    ),
  ]
  row = {"sheet": "s1", "item": "bb", "rater": "Cy", "label": "MAYBE"}
  paths.append(tmp_path / "c.json")
  paths[-1].write_text(json.dumps([row]))
  assert ratings.read(paths, KEY, rater="Bo") == [
    Rating("Ann", "x", "topk", 5, "YES"),
    Rating("Bo", "x", "topk", 5, "NO"),
    Rating("Cy", "y", "gated", 6, "MAYBE"),
  ]


@pytest.mark.parametrize(
  ("line", "says"),
  [
    ("s1,zz,Ann,YES", "rating 1: item 'zz' is not on sheet 's1'"),
    ("s2,aa,Ann,YES", "of sheet 's2', but the key is of sheet 's1'"),
    ("s1,aa,Ann,PERHAPS", "label 'PERHAPS', expected one of YES, MAYBE, NO"),
    ("s1,aa,,YES", "no rater; fill in"),
    ("s1,aa,Ann,YES\ns1,aa,Ann,NO", "rating 2: 'Ann' has rated item aa before"),
    ("s1,aa", "no rater, label"),
  ],
)
def test_wrong_ratings_are_refused_with_their_place(tmp_path, line, says):
  path = _write(tmp_path / "a.csv", line)
  with pytest.raises(RatingError, match=says):
    ratings.read([path], KEY)


def test_one_item_twice_in_two_files_is_refused(tmp_path):
  paths = [_write(tmp_path / f"{i}.csv", "s1,aa,Ann,YES") for i in range(2)]
  with pytest.raises(RatingError, match="1.csv, rating 1: 'Ann' has rated"):
    ratings.read(paths, KEY)
  with pytest.raises(RatingError, match="no sheet"):
    ratings.read(
      [_write(tmp_path / "n.csv", "aa,Ann,YES", head="item,rater,label\n")], KEY
    )
  (tmp_path / "o.json").write_text("{}")
  with pytest.raises(RatingError, match="expected a list"):
    ratings.read([tmp_path / "o.json"], KEY)


@pytest.mark.parametrize(("yes", "n"), [(0, 12), (7, 12), (12, 12), (65, 100)])
def test_one_rating_a_latent_gives_wilsons_interval(yes, n):
  share = ratio(np.array([1.0] * yes + [0.0] * (n - yes)), np.ones(n))
  found = ratings.wilson(share, n)
  expected = stats.binomtest(yes, n).proportion_ci(method="wilson")
  assert found == pytest.approx([expected.low, expected.high], abs=1e-9)


def test_raters_who_always_agree_count_once():
  """Five copies of each rating widen nothing and narrow nothing."""
  labels = ["YES"] * 13 + ["NO"] * 7
  make = lambda raters: ratings.table(
    [
      Rating(f"r{r}", "x", "topk", latent, label)
      for r in range(raters)
      for latent, label in enumerate(labels)
    ]
  )["families"][0]
  one, five = make(1), make(5)
  for label in ("yes", "maybe", "no"):
    assert five[label] == pytest.approx(one[label])
    assert five["intervals"][label] == pytest.approx(one["intervals"][label])
  assert five["ratings"] == 100 and five["agreement"] == 1
  assert one["agreement"] is None
  assert one["yes"]["mean"] == 0.65 and one["maybe"]["mean"] == 0


def test_intervals_hold_the_truth_with_several_raters():
  random = np.random.default_rng(0)
  truth, hits = 0.6, 0
  for _ in range(400):
    # Latents differ: their raters agree more than chance.
    clear = random.beta(1.2, 0.8, 40)
    counts = random.binomial(5, clear)
    share = ratio(counts.astype(float), np.full(40, 5.0))
    low, high = ratings.wilson(share, 200)
    hits += low <= truth <= high
  assert 0.91 < hits / 400 < 0.985


def test_the_table_counts_by_family_and_compares():
  random = np.random.default_rng(1)
  made = [
    Rating(f"r{r}", family, family, latent, str(random.choice(ratings.LABELS)))
    for family in ("topk", "gated")
    for latent in range(30)
    for r in range(2)
  ]
  table = ratings.table(made)
  assert json.loads(json.dumps(table)) == table
  assert table["raters"] == 2 and table["ratings"] == 120
  assert [f["family"] for f in table["families"]] == ["gated", "topk"]
  for family in table["families"]:
    total = sum(family[label]["mean"] for label in ("yes", "maybe", "no"))
    assert total == pytest.approx(1)
    assert family["latents"] == 30 and family["ratings"] == 60
    assert family["agreement"] == pytest.approx(1 / 3, abs=0.25)
  (difference,) = table["differences"]
  assert abs(difference["difference"]["mean"]) < 0.3
  with pytest.raises(ValueError, match="no ratings"):
    ratings.table([])
  low, high = ratings.wilson(Estimate(1.0, None, 1), 1)
  assert low < 0.3 and high == 1

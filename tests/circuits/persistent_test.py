"""A planted permutation is found, and in random SAEs there is nothing."""

import numpy as np
import pytest
import scipy.sparse

from gemmascope_jax.circuits import persistence, persistent
from gemmascope_jax.circuits.persistent import BOTH, DIRECTION, FIRING
from gemmascope_jax.sae.sae import SAEConfig
from tests.studies.activity import rows as made

M, D, R, SAME = 150, 48, 4_000, 100


def _sparse(dense):
  return scipy.sparse.csr_array(np.asarray(dense, np.int32))


def _fires(rng, width):
  return rng.random((R, width)) < rng.uniform(0.01, 0.2, width)[None]


def _planted(seed, noise=0.3, flips=0.1):
  """(decoders, firing, the permutation): the first SAME latents persist."""
  rng = np.random.default_rng(seed)
  strong = np.append(np.full(3, 6.0), np.ones(D - 3))  # as in a real stream
  first = rng.normal(size=(M, D)) * strong
  second = rng.normal(size=(M, D)) * strong
  a, b = _fires(rng, M), _fires(rng, M)
  order, to = rng.permutation(M), np.empty(M, int)
  to[order] = np.roll(order, 1)  # one cycle: nobody keeps its number
  spread = np.linalg.norm(first[:SAME], axis=1, keepdims=True)
  away = rng.normal(size=(SAME, D)) * noise * spread / np.sqrt(D)
  second[to[:SAME]] = first[:SAME] + away
  drop = rng.random((R, SAME)) < flips
  b[:, to[:SAME]] = a[:, :SAME] & ~drop
  decoders = first.astype(np.float32), second.astype(np.float32)
  return decoders, (_sparse(a), _sparse(b)), to


@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_permutation_is_found(seed):
  (first, second), firing, to = _planted(seed)
  found = persistent.match(first, second, firing, seed=seed)
  for criterion in (DIRECTION, FIRING, BOTH):
    partner = found.partners[criterion]
    right = (partner[:SAME] == to[:SAME]).sum()
    assert right >= 0.93 * SAME, criterion
    # Nobody is found twice, and hardly anybody who is not there.
    matched = partner[partner >= 0]
    assert len(set(matched)) == len(matched)
    assert (partner[SAME:] >= 0).sum() <= 3, criterion
    share = found.share(criterion)
    assert share.mean == pytest.approx((partner >= 0).mean())
    n, p = M, share.mean
    assert share.stderr == pytest.approx(np.sqrt(p * (1 - p) / (n - 1)))
    assert found.false[criterion].mean <= 0.03
  assert found.partners[BOTH][SAME:].max() == -1
  assert found.false[BOTH].mean == 0


def test_nothing_is_found_in_random_saes():
  shares = {name: [] for name in (DIRECTION, FIRING, BOTH)}
  for seed in range(4):
    rng = np.random.default_rng(seed)
    strong = np.append(np.full(3, 6.0), np.ones(D - 3))
    first, second = rng.normal(size=(2, M, D)).astype(np.float32) * strong
    firing = _sparse(_fires(rng, M)), _sparse(_fires(rng, M))
    found = persistent.match(
      first.astype(np.float32), second.astype(np.float32), firing, seed=seed
    )
    for name, each in shares.items():
      each.append(found.share(name).mean)
  assert np.mean(shares[DIRECTION]) < 0.03
  assert np.mean(shares[FIRING]) < 0.03
  assert np.mean(shares[BOTH]) == 0


def test_random_turns_keep_the_second_moments_and_nothing_else():
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(400, 12)) * np.append([9.0, 4.0], np.ones(10))
  unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
  turned = persistent._rotated(rows, np.ones(400, bool), rng)
  np.testing.assert_allclose(turned.T @ turned, unit.T @ unit, atol=1e-3)
  own = (turned * unit).sum(axis=1) / np.linalg.norm(turned, axis=1)
  assert np.median(np.abs(own)) < 0.9


def test_what_a_common_start_left_alike_does_not_count():
  """Latents that never moved from where both SAEs began are no finding."""
  (first, second), firing, to = _planted(3)
  second = second.copy()
  stayed = np.setdiff1d(np.arange(SAME, M), to[:SAME])
  assert len(stayed) > 10
  second[stayed] = first[stayed]
  found = persistent.match(first, second, firing)
  assert (found.partners[DIRECTION][stayed] == -1).all()
  assert found.same_number == {DIRECTION: len(stayed), FIRING: 0}
  assert (found.partners[BOTH][:SAME] == to[:SAME]).mean() > 0.9
  every = persistent.match(first, second, firing, same_number=True)
  np.testing.assert_array_equal(every.partners[DIRECTION][stayed], stayed)


def test_latents_that_hardly_fire_take_no_part():
  (first, second), (a, b), to = _planted(2)
  a = a.tolil()
  a[:, 0] = 0
  found = persistent.match(first, second, (_sparse(a.toarray()), b))
  assert not found.alive[0] and found.alive[1:].all()
  assert all(each[0] == -1 for each in found.partners.values())
  assert found.share(BOTH).n == M - 1


def test_chains_are_followed_to_where_they_break():
  steps = [np.array([2, -1, 0]), np.array([1, 0, -1, 5])]
  found = persistent.chains(steps)
  expected = [[0, 2, -1], [1, -1, -1], [2, 0, 1]]
  np.testing.assert_array_equal(found, expected)
  alive = np.array([True, True, False])
  shares = [each.mean for each in persistent.survival(steps, alive)]
  assert shares == [1, 0.5, 0]


class Layers:
  """Rows of three sites that a store would hold."""

  root = "made-up rows"

  def __init__(self, x):
    self._x = {
      site: made.Rows(rows, [200] * (len(rows) // 200))
      for site, rows in x.items()
    }
    one = next(iter(self._x.values()))
    self.rows, self.tokens, self.index = one.rows, one.tokens, one.index

  def width(self, site):
    return self._x[site].x.shape[1]

  def read(self, site, start, stop):
    return self._x[site].x[start:stop]


def _three():
  """SAEs of coordinates that are renamed from layer to layer; half are lost at
  the last step."""
  rng = np.random.default_rng(5)
  width, orders = 40, [np.roll(np.arange(40), 7 * step) for step in range(3)]
  x = np.where(rng.random((2_000, width)) < 0.1, rng.random((2_000, width)), 0)
  saes, acts = {}, {}
  for layer, order in enumerate(orders):
    basis = np.eye(width)[:, order]
    site = f"res.{layer + 4}"
    acts[site] = x
    if layer == 2:  # latents 0..19 of the stream are something else here
      lost = np.arange(20)
      acts[site] = x.copy()
      acts[site][:, lost] = x[rng.permutation(2_000)][:, lost]
      turn = np.linalg.qr(rng.normal(size=(20, 20)))[0]
      basis = basis.copy()
      basis[:20] = turn @ basis[:20]
    sae = made.sae(basis, threshold=0.01)
    saes[f"layer {layer}"] = sae.replace(config=SAEConfig(site=site))
  return saes, Layers(acts)


def test_the_study_follows_latents_over_layers(tmp_path):
  saes, store = _three()
  result = persistence.run(
    dict(reversed(saes.items())),
    store,
    path=tmp_path / "partners.npz",
    progress=False,
  )
  assert [each["site"] for each in result["saes"]] == [
    "res.4",
    "res.5",
    "res.6",
  ]
  one, other = result["steps"]
  assert one["shares"][BOTH]["mean"] == 1
  assert other["shares"][BOTH]["mean"] == pytest.approx(0.5, abs=0.06)
  kept = [each["mean"] for each in result["survival"][BOTH]]
  assert kept[:2] == [1, 1] and kept[2] == pytest.approx(0.5, abs=0.06)
  assert result["survival"][BOTH][2]["stderr"] == pytest.approx(0.08, abs=0.01)
  assert result["chance"][BOTH] == [1, 0, 0]
  assert sum(one["scores"][FIRING]["real"]) == 40
  with np.load(tmp_path / "partners.npz") as arrays:
    partner = arrays["layer 0|layer 1|both|partner"]
  basis = np.asarray(saes["layer 1"].params.w_dec)
  np.testing.assert_array_equal(partner, basis.argmax(axis=0))
  alone = persistence.run(saes, progress=False)
  assert alone["criteria"] == [DIRECTION] and alone["rows"] is None


@pytest.mark.parametrize(
  "options, message",
  [
    ({"second": np.ones((5, 3))}, "widths 4 and 3"),
    ({"alpha": 0}, "alpha 0"),
    ({"firing": (np.zeros((7, 6)), np.zeros((7, 6)))}, "6 and 5 latents"),
    ({"firing": (np.zeros((7, 6)), np.zeros((7, 5)))}, "more rows"),
  ],
)
def test_what_does_not_fit_is_refused(options, message):
  given = {"first": np.ones((6, 4)), "second": np.ones((5, 4))} | options
  if "firing" in given:
    given["firing"] = tuple(map(_sparse, given["firing"]))
  with pytest.raises(ValueError, match=message):
    persistent.match(**given)


def test_saes_of_other_sites_are_refused():
  saes, _ = _three()
  one = saes["layer 0"]
  with pytest.raises(ValueError, match="1 SAEs: expected at least two"):
    persistence.run({"a": one})
  with pytest.raises(ValueError, match="'a' and 'b' are both of res.4"):
    persistence.run({"a": one, "b": one})
  mlp = one.replace(config=SAEConfig(site="mlp.4"))
  with pytest.raises(ValueError, match="'b' is of mlp.4"):
    persistence.run({"a": one, "b": mlp})

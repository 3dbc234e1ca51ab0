"""One pass in blocks against a dense look at everything at once."""

import numpy as np
import pytest

from gemmascope_jax.studies import activity
from gemmascope_jax.studies.activity import resampling, sample
from gemmascope_jax.studies.activity.entries import on_device
from gemmascope_jax.studies.activity.examples import Random
from gemmascope_jax.studies.activity.tokens import TokenSums
from gemmascope_jax.studies.estimate import ratio
from tests.studies.activity import rows as made

ROWS, D, M = 900, 6, 23


def _setting(seed=0):
  rng = np.random.default_rng(seed)
  store = made.Rows(rng.normal(size=(ROWS, D)), made.lengths(ROWS, 40))
  w_enc = rng.normal(size=(D, M)) * rng.uniform(0.1, 300, M)
  threshold = rng.uniform(0, 3, M) * np.abs(w_enc).mean(axis=0)
  threshold[4] = np.inf  # dead
  return store, made.sae(w_enc, threshold=threshold)


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize(
  "block", [pytest.param(1, marks=pytest.mark.slow), 7, 64, 10_000]
)
def test_every_statistic_equals_a_dense_computation(block, k):
  store, sae = _setting()
  sae = sae.replace(config=made.SAEConfig(site="res.1", k=k))
  used = 850  # cuts a window
  found = activity.collect(
    {"a": sae},
    store,
    "res.1",
    rows=used,
    contexts=3,
    samples=5,
    vocabulary=50,
    block=block,
    progress=False,
  )["a"]
  code = np.asarray(sae.encode(store.x[:used]))
  windows, positions = store.index(0, used).T
  count = windows.max() + 1
  by_window = lambda a: np.stack([a[windows == w].sum(0) for w in range(count)])
  fires = by_window(code > 0)
  weights = by_window(np.ones(used))
  often = found.frequencies
  assert np.array_equal(often.counts, (code > 0).sum(axis=0))
  assert often.counts[4] == 0 and often.rows == used and often.windows == count
  for latent in range(M):
    expected = ratio(fires[:, latent], weights)
    assert often.frequency[latent] == pytest.approx(expected.mean)
    assert often.stderr[latent] == pytest.approx(expected.stderr, abs=1e-12)
  assert often.l0() == ratio(fires.sum(axis=1), weights)
  np.testing.assert_allclose(found.values.sums, code.sum(0), rtol=1e-4)
  squares = np.square(code.astype(np.float64)).sum(0)
  np.testing.assert_allclose(found.values.squares, squares, rtol=1e-4)
  np.testing.assert_allclose(found.values.maximum, code.max(0), rtol=1e-5)
  tokens = store.tokens[windows, positions]
  for latent in range(M):
    _check_latent(found, latent, code[:, latent], windows, tokens)


def _check_latent(found, latent, active, windows, tokens):
  counts, edges = found.values.histogram(latent)
  expected = np.histogram(active[active > 0], edges)[0] if len(counts) else []
  assert np.array_equal(counts, expected)
  assert counts.sum() == (active > 0).sum()
  if len(counts):
    assert 17 <= len(counts) <= 32
    assert edges[-2] <= active.max() <= edges[-1]
  best = {}
  for row in np.argsort(-active, kind="stable"):
    if active[row] > 0:
      best.setdefault(windows[row], row)
  kept = found.strongest.rows[latent]
  assert kept[kept >= 0].tolist() == list(best.values())[:3]
  np.testing.assert_allclose(
    found.strongest.values[latent][kept >= 0], active[kept[kept >= 0]], 1e-5
  )
  drawn = found.random.rows[latent]
  drawn = drawn[drawn >= 0]
  assert len(set(drawn)) == len(drawn) == min(5, (active > 0).sum())
  assert (active[drawn] > 0).all()
  means = {
    t: active[tokens == t].mean()
    for t in np.unique(tokens[active > 0])
    if (tokens == t).sum() >= 10
  }
  ids, values = found.tokens.top(latent, 4, least=10)
  np.testing.assert_allclose(values, sorted(means.values())[::-1][:4], 1e-5)
  np.testing.assert_allclose([means[i] for i in ids], values, 1e-5)


def test_blocks_do_not_change_what_is_drawn():
  store, sae = _setting()
  look = lambda block: activity.collect(
    {"a": sae}, store, "res.1", block=block, progress=False
  )["a"]
  one, other = look(37), look(400)
  assert np.array_equal(one.random.rows, other.random.rows)
  assert np.array_equal(one.strongest.rows, other.strongest.rows)


def test_what_is_drawn_is_uniform():
  """Each of 40 rows is kept as often as any other, over 3,000 latents."""
  store = made.Rows(np.ones((40, 1)), [40])
  sae = on_device(made.sae(np.ones((1, 3_000))))
  block = next(sample.Sample.of(store, "res.1").blocks("", progress=False))
  drawn = Random(3_000, 5)
  drawn.add(activity.active(sae, block.x), block)
  often = np.bincount(drawn.rows.reshape(-1), minlength=40)
  deviation = (often - 375) / np.sqrt(375 * (1 - 5 / 40))
  assert np.square(deviation).sum() < 39 + 4 * np.sqrt(2 * 39)
  assert np.abs(deviation).max() < 4.5
  pairs = drawn.rows[:, 0] % 2 == drawn.rows[:, 1] % 2
  assert abs(pairs.mean() - 19 / 39) < 0.05


def test_sums_leave_the_entries_as_they_were():
  store = made.Rows(np.ones((20, 1)), [20], vocabulary=5)  # tokens repeat
  block = next(sample.Sample.of(store, "res.1").blocks("", progress=False))
  entries = activity.active(on_device(made.sae(np.ones((1, 3)))), block.x)
  before = [array.copy() for array in entries]
  TokenSums(3, 5).add(entries, block)
  for array, expected in zip(entries, before, strict=True):
    np.testing.assert_array_equal(array, expected)


def test_several_saes_share_the_pass():
  store, sae = _setting()
  reads = []
  plain = store.read
  store.read = lambda *a: reads.append(a[1:]) or plain(*a)
  other = made.identity(D)
  together = activity.collect(
    {"a": sae, "b": other}, store, "res.1", progress=False
  )
  assert sorted(reads) == reads and sum(b - a for a, b in reads) == ROWS
  alone = activity.collect({"b": other}, store, "res.1", progress=False)["b"]
  assert np.array_equal(
    together["b"].frequencies.counts, alone.frequencies.counts
  )


def test_pruned_tokens_keep_the_greatest_and_say_so():
  rng = np.random.default_rng(0)
  rows = 40_000
  store = made.Rows(np.ones((rows, 1)), [100] * 400, vocabulary=30_000)
  # Token 7 is on every fifth place, all others are rare.
  positions = store.index(0, rows)
  often = rng.random(rows) < 0.2
  store.tokens[store.tokens == 7] = 8
  store.tokens[positions[often, 0], positions[often, 1]] = 7
  store.x[often] = 3
  latents = 100
  found = activity.collect(
    {"a": made.sae(np.ones((1, latents)))},
    store,
    "res.1",
    vocabulary=30_000,
    pairs=2_000,
    block=500,
    progress=False,
  )["a"].tokens
  assert found.pruned > 0
  ids, means = found.top(50, 1, least=100)
  assert ids.tolist() == [7] and means == pytest.approx([3])


def test_groups_are_whole_windows_and_blocks_do_not_mix_them():
  store = made.Rows(np.ones((500, 1)), made.lengths(500, 20))
  found = sample.Sample.of(store, "res.1", 490)
  groups = {}
  starts = []
  for block in found.blocks("", 33, progress=False):
    starts.append(block.start)
    for window in block.windows:
      groups.setdefault(int(window), set()).add(block.group)
  assert all(len(g) == 1 for g in groups.values())
  assert len(groups) == found.windows and starts == sorted(starts)
  sizes = np.bincount([g for s in groups.values() for g in s])
  assert len(sizes) == 16 and sizes.max() - sizes.min() <= 1


def test_a_million_latents_fit():
  """2^20 latents by 6 contexts and 24 samples: memory of the arrays."""
  latents = 1 << 20
  store = made.Rows(np.eye(2, dtype=np.float32)[np.arange(64) % 2], [32, 32])
  w_enc = np.zeros((2, latents), np.float32)
  w_enc[0, ::4096] = 1
  found = activity.collect(
    {"a": made.sae(w_enc)}, store, "res.1", vocabulary=50, progress=False
  )["a"]
  assert found.frequencies.counts.sum() == 256 * 32
  parts = (found.values, found.strongest, found.random)
  held = sum(
    a.nbytes for p in parts for a in vars(p).values() if hasattr(a, "nbytes")
  )
  assert held < 1 << 30


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ({"rows": 0}, "rows 0: expected at least 1"),
    ({"block": 0}, "block 0: expected at least 1"),
    ({"contexts": 0}, "0 rows a latent"),
    ({"vocabulary": 9, "pairs": 0}, "pairs 0"),
  ],
)
def test_bad_numbers_are_errors(options, says):
  store, sae = _setting()
  with pytest.raises(ValueError, match=says):
    activity.collect({"a": sae}, store, "res.1", progress=False, **options)


def test_saes_of_another_place_are_errors():
  store, sae = _setting()
  check = lambda saes: activity.collect(saes, store, "res.1", progress=False)
  with pytest.raises(ValueError, match="no SAEs"):
    check({})
  with pytest.raises(ValueError, match="'b' was trained at site res.7, not"):
    check({"b": sae.replace(config=made.SAEConfig(site="res.7"))})
  with pytest.raises(ValueError, match="'b' reads activations of width 9"):
    check({"b": made.identity(9)})


def test_a_latent_fires_on_its_share_and_its_error_is_right():
  """Known rates that differ between windows: mean and error by simulation."""
  rng = np.random.default_rng(5)
  found = []
  for _ in range(150):
    rate = rng.beta(2, 6, (40, 1, 3))  # of each window and latent
    fires = rng.random((40, 25, 3)) < rate
    store = made.Rows(fires.reshape(1000, 3) * 2.0, [25] * 40)
    often = activity.collect(
      {"a": made.identity(3, threshold=1)}, store, "res.1", progress=False
    )["a"].frequencies
    found.append((often.frequency, often.stderr))
  frequency, stderr = map(np.array, zip(*found, strict=True))
  assert frequency.mean() == pytest.approx(0.25, abs=0.004)
  assert np.sqrt(np.square(stderr).mean()) == pytest.approx(
    frequency.std(axis=0).mean(), rel=0.1
  )
  covered = np.abs(frequency - 0.25) < 1.96 * stderr
  assert 0.91 < covered.mean() < 0.98


def test_an_exact_share_is_exact():
  x = np.zeros((400, 2))
  x[::8, 0] = 1
  store = made.Rows(x, [100] * 4)
  often = activity.collect(
    {"a": made.identity(2)}, store, "res.1", progress=False
  )["a"].frequencies
  assert often.frequency.tolist() == [0.125, 0.0]
  # 13 or 12 of 100 in a window: the error is that of those four numbers.
  share = np.array([13, 12, 13, 12]) / 100
  assert often.stderr[0] == pytest.approx(share.std(ddof=1) / 2)


def test_drawing_groups_gives_the_error_of_a_mean():
  values = np.random.default_rng(0).normal(size=16)
  mean = lambda weights: weights @ values / weights.sum()
  found = resampling.estimate(mean, 16, 32)
  assert found.stderr == pytest.approx(values.std(ddof=1) / 4, rel=0.2)
  assert (found.mean, found.n) == (pytest.approx(values.mean()), 32)
  assert resampling.estimate(lambda w: 3.0, 1, 1).stderr is None
  assert resampling.estimate(lambda w: w[0] and np.nan, 4, 4).stderr is None

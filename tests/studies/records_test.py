"""Metrics against a direct float64 computation, however they are batched."""

import numpy as np
import pytest

from gemmascope_jax.studies.records import (
  SiteRecord,
  SpliceRecord,
  concatenate,
  take,
)


def _data(seed=0, sequences=9, tokens=12, width=5):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(sequences, tokens, width)) * [5, 1, 1, 0.5, 0.1] + 3
  x_hat = x + rng.normal(size=x.shape) * 0.3
  keep = rng.random((sequences, tokens)) < 0.8
  keep[:, 0] = False
  clean = rng.random((sequences, tokens - 1)) * 4
  spliced = clean + rng.normal(0.2, 0.1, clean.shape)
  return x, x_hat, keep, clean, spliced


def _records(x, x_hat, keep, clean, spliced, batch, shift):
  sites, splices = [], []
  for start in range(0, len(x), batch):
    part = slice(start, start + batch)
    keep_loss = keep[part, :-1]
    sites.append(
      SiteRecord.of(
        x[part], keep[part], ~keep[part], shift, clean[part], keep_loss
      )
    )
    moments = np.zeros((1, 4, x.shape[2]))
    splices.append(
      SpliceRecord(
        squared_error=np.square(x_hat - x).sum(-1)[part],
        active=np.full(keep[part].shape, 3.0),
        norm=np.square(x_hat).sum(-1)[part],
        dot=(x * x_hat).sum(-1)[part],
        loss=spliced[part],
        kl=spliced[part],
        moments=moments,
      )
    )
  return concatenate(sites), concatenate(splices)


def _direct(x, x_hat, keep, clean, spliced):
  kept, kept_hat = x[keep], x_hat[keep]
  fvu = np.square(kept - kept_hat).sum() / np.square(kept - kept.mean(0)).sum()
  delta = (spliced - clean)[keep[:, :-1]].mean()
  return fvu, delta


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_batching_changes_nothing(batch):
  data = _data()
  site, splice = _records(*data, batch, data[0].mean(axis=(0, 1)))
  fvu, delta = _direct(*data)
  assert splice.fvu(site).mean == pytest.approx(fvu, rel=1e-10)
  assert splice.delta_loss(site).mean == pytest.approx(delta, rel=1e-10)
  assert splice.l0(site).mean == pytest.approx(3.0)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_fvu_does_not_depend_on_scale_or_mean(scale, offset):
  x, x_hat, *rest = _data()
  base, _ = _direct(x, x_hat, *rest)
  moved, moved_hat = scale * x + offset, scale * x_hat + offset
  shift = moved[0].mean(axis=0)  # one batch's mean, as a study uses
  site, splice = _records(moved, moved_hat, *rest, 2, shift)
  assert splice.fvu(site).mean == pytest.approx(base, rel=1e-6)


def test_order_of_sequences_changes_nothing():
  data = _data()
  order = np.random.default_rng(3).permutation(len(data[0]))
  shift = data[0].mean(axis=(0, 1))
  site, splice = _records(*data, 3, shift)
  other, moved = _records(*(a[order] for a in data), 3, shift)
  assert moved.fvu(other).mean == pytest.approx(splice.fvu(site).mean, rel=1e-9)
  assert moved.fvu(other).stderr == pytest.approx(
    splice.fvu(site).stderr, rel=1e-9
  )


def test_what_the_policy_leaves_out_may_be_anything():
  x, x_hat, keep, clean, spliced = _data()
  fvu, delta = _direct(x, x_hat, keep, clean, spliced)
  shift = x[keep].mean(axis=0)
  x[~keep] = np.nan
  clean[~keep[:, :-1]] = np.inf
  site, splice = _records(x, x_hat, keep, clean, spliced, 4, shift)
  assert splice.fvu(site).mean == pytest.approx(fvu, rel=1e-10)
  assert splice.delta_loss(site).mean == pytest.approx(delta, rel=1e-10)


def test_a_replacement_without_latents_has_no_l0():
  data = _data()
  site, splice = _records(*data, 4, data[0].mean(axis=(0, 1)))
  splice.active[:] = np.nan
  assert splice.l0(site) is None


def test_cosine_and_bias_of_a_shrunk_reconstruction():
  x, _, *rest = _data()
  site, splice = _records(x, 0.8 * x, *rest, 4, x[0].mean(axis=0))
  assert splice.cosine(site).mean == pytest.approx(1, rel=1e-6)
  assert splice.bias(site).mean == pytest.approx(0.8, rel=1e-6)
  assert splice.bias(site).stderr == pytest.approx(0, abs=1e-6)
  nothing, splice = _records(x, 0 * x, *rest, 4, x[0].mean(axis=0))
  assert splice.cosine(nothing).mean == 0
  assert splice.bias(nothing) is None


def test_a_part_of_the_sequences_is_measured_alone():
  data = _data()
  shift = data[0].mean(axis=(0, 1))
  site, splice = _records(*data, 4, shift)
  some = np.array([1, 4, 5])
  alone, alone_splice = _records(*(a[some] for a in data), 3, shift)
  part, part_splice = take(site, some), take(splice, some)
  assert part_splice.fvu(part) == alone_splice.fvu(alone)
  assert part_splice.delta_loss(part) == alone_splice.delta_loss(alone)
  assert part.clean() == alone.clean()

"""Each convention against its own plain formula, and what is said against it."""

import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax import gemma
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.studies import compat, records, splice
from gemmascope_jax.studies.replacements import Replacement
from tests.data import tiny_gemma

POLICY = TokenPolicy.of(tiny_gemma.ByteTokenizer())
SITE = "res.1"


class Noisy(Replacement):
  """x scaled, mixed and shifted."""

  scale: jnp.ndarray
  offset: jnp.ndarray

  def reconstruct(self, x):
    mixed = x * self.scale + 0.3 * jnp.roll(x, 1, axis=-1)
    return mixed + self.offset, jnp.ones(x.shape[:-1])


@pytest.fixture(scope="module", name="case")
def _case():
  lm = tiny_gemma.lm()
  rng = np.random.default_rng(0)
  tokens = rng.integers(4, 200, (6, 9)).astype(np.int32)
  tokens[:, 0], tokens[3, 6:] = 2, 0
  scale = jnp.asarray(rng.uniform(0.6, 1.2, (1, 1, 12)), jnp.float32)
  offset = jnp.asarray(rng.normal(size=(1, 1, 12)) * 0.1, jnp.float32)
  noisy = Noisy(scale, offset)
  parts = [
    splice.run_batch(
      lm, SITE, {"noisy": noisy}, tokens[i : i + 2], POLICY, np.zeros(12)
    )
    for i in (0, 2, 4)
  ]
  site = records.concatenate([part[0] for part in parts])
  spliced = records.concatenate([part[1]["noisy"] for part in parts])
  acts = gemma.forward(
    lm.config, lm.params, jnp.asarray(tokens), taps=(SITE,), mask=tokens != 0
  ).acts[SITE]
  x_hat = np.asarray(noisy.reconstruct(acts)[0], np.float64)
  return site, spliced, tokens, np.asarray(acts, np.float64), x_hat


def _fvu(x, x_hat):
  return np.square(x - x_hat).sum() / np.square(x - x.mean(0)).sum()


def test_every_convention_is_its_formula(case):
  site, spliced, tokens, x, x_hat = case
  found = {c.name: c.value for c in compat.conventions(site, spliced)}
  keep, real = np.isin(tokens, (0, 1, 2), invert=True), tokens != 0
  batches = [
    _fvu(x[i : i + 2][keep[i : i + 2]], x_hat[i : i + 2][keep[i : i + 2]])
    for i in (0, 2, 4)
  ]
  bos = _fvu(x[real], x_hat[real])
  x, x_hat = x[keep], x_hat[keep]
  e = x_hat - x
  square = lambda a: np.square(a).sum(-1)
  # about the shift, which is 0 here
  expected = {
    "FVU": _fvu(x, x_hat),
    "with special tokens": bos,
    "by batch": np.mean(batches),
    "residual variance": e.var(0).sum() / x.var(0).sum(),
    "by token": (square(e) / square(x)).mean(),
    "squared mean square": square(e).mean()
    / (square(x).mean() - np.square(x).mean() ** 2),
    "normalised MSE": (square(e) / square(x)).mean(),
    "scalar mean": np.square(e).sum() / np.square(x - x.mean()).sum(),
    "1 - correlation squared": 1
    - np.mean(
      [np.corrcoef(x[:, d], x_hat[:, d])[0, 1] ** 2 for d in range(12)]
    ),
  }
  assert found == pytest.approx(expected, rel=1e-4)
  assert len(set(found.values())) >= 8  # they do differ


def test_what_is_said_against_them_is_so(case):
  site, spliced, *_ = case
  found = {c.name: c for c in compat.conventions(site, spliced)}
  assert found["FVU"].flaw == ""
  assert all(c.flaw for c in found.values() if c.name != "FVU")
  # Scale: only one of them minds.
  by = 30.0
  scaled_site = records.SiteRecord(
    **vars(site)
    | {
      "norm": site.norm * by**2,
      "centred": site.centred * by**2,
      "first": site.first * by,
      "first_special": site.first_special * by,
      "second": site.second * by**2,
    }
  )
  scaled = records.SpliceRecord(
    **vars(spliced)
    | {
      "squared_error": spliced.squared_error * by**2,
      "moments": spliced.moments * np.array([by, by, by**2, by**2])[:, None],
    }
  )
  other = {c.name: c.value for c in compat.conventions(scaled_site, scaled)}
  for name, convention in found.items():
    same = other[name] == pytest.approx(convention.value, rel=1e-4)
    assert same == (name != "squared mean square"), name


def test_a_number_that_is_none_says_so(case):
  site, spliced, *_ = case
  nothing = compat.Convention("a", "b", "c", "d", float("nan"))
  assert nothing.to_dict()["value"] is None
  assert compat.conventions(site, spliced)[0].to_dict()["value"] > 0

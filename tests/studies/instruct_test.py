"""Parts of rollouts, rescaling, and planted differences between models."""

import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.sae.sae import SAE, Params
from gemmascope_jax.studies import instruct
from gemmascope_jax.studies.findings import AGREES, DISAGREES, UNCLEAR
from gemmascope_jax.studies.records import SiteRecord
from gemmascope_jax.studies.replacements import Constant, FromSAE
from tests.studies import planted_records

SHAPE, WIDTH = (40, 20), planted_records.WIDTH
HALF = SHAPE[1] // 2


def _masks():
  prompt = np.zeros(SHAPE, bool)
  prompt[:, :HALF] = True
  return {"rollout": ~prompt, "prompt": prompt}


def _result(members, factor=0.9, seed=0):
  """Of {name: (trained_on, rescaled, error, delta, L0)}.

  Each of the last three is a number, or of a prompt's and a rollout's tokens.
  """
  record = planted_records.site(seed, SHAPE)
  spliced, rows = {}, []
  for number, (name, (trained_on, rescaled, *numbers)) in enumerate(
    members.items()
  ):
    split = []
    for place, value in enumerate(numbers):
      prompt, rollout = value if isinstance(value, tuple) else (value, value)
      end = HALF - (place == 1)  # a loss belongs to the token it predicts
      width = SHAPE[1] - (place == 1)
      split.append(np.where(np.arange(width) < end, prompt, rollout)[None])
    spliced[name] = planted_records.splice(
      record, *split, seed=10 * seed + number
    )
    rows.append(
      {
        "name": name,
        "site": "res.1",
        "family": "jumprelu",
        "width": 8,
        "trained_on": trained_on,
        "rescaled": rescaled,
        "sparsity_coefficient": 1.0,
      }
    )
  masks = _masks()
  parts = {
    name: instruct.part(record, mask, np.zeros((SHAPE[0], WIDTH)))
    for name, mask in masks.items()
  }
  return instruct.result(
    rows, {"res.1": parts}, {"res.1": spliced}, {"seed": 0}, {"res.1": factor}
  )


def test_a_parts_record_is_that_of_its_tokens_alone():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(*SHAPE, WIDTH)) + 3
  keep = rng.uniform(size=SHAPE) < 0.9
  shift = x[keep].mean(axis=0)
  losses = rng.uniform(1, 5, (SHAPE[0], SHAPE[1] - 1))
  record = SiteRecord.of(x, keep, ~keep, shift, losses, keep[:, :-1])
  for mask in _masks().values():
    here = keep & mask
    first = np.where(here[:, :, None], x - shift, 0).sum(axis=1)
    found = instruct.part(record, mask, first)
    mean = x[here].mean(axis=0)
    expected = np.where(here, np.square(x - mean).sum(axis=2), 0).sum(axis=1)
    np.testing.assert_allclose(found.variance(), expected, rtol=1e-9)
    np.testing.assert_array_equal(found.count, here.sum(axis=1))
    # The last prompt token predicts the first that the model said.
    np.testing.assert_array_equal(found.keep_loss, keep[:, :-1] & mask[:, 1:])


def test_parts_have_their_own_numbers():
  result = _result({"a": ("base", False, (0.1, 0.4), (0.2, 0.8), (5, 20))})
  (row,) = result["saes"]
  prompt, rollout = row["parts"]["prompt"], row["parts"]["rollout"]
  assert prompt["delta_loss"]["mean"] == pytest.approx(0.2, rel=0.1)
  assert rollout["delta_loss"]["mean"] == pytest.approx(0.8, rel=0.1)
  assert prompt["l0"]["mean"] == pytest.approx(5, rel=0.05)
  assert rollout["l0"]["mean"] == pytest.approx(20, rel=0.05)


def test_rescaling_multiplies_and_divides():
  x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
  constant = instruct.Rescaled(
    Constant(jnp.ones(4, jnp.float32)), jnp.float32(4.0)
  )
  np.testing.assert_allclose(constant.reconstruct(x)[0], 0.25)
  eye = np.eye(4, dtype=np.float32)
  params = Params(eye, np.zeros(4), eye, np.zeros(4), np.full(4, 0.5))
  sae = SAE(
    Params(
      *(
        np.asarray(v, np.float32)
        for v in vars(params).values()
        if v is not None
      )
    )
  )
  x_hat, active = instruct.Rescaled(FromSAE(sae), jnp.float32(2.0)).reconstruct(
    x
  )
  np.testing.assert_allclose(x_hat, np.where(x > 0.25, x, 0), rtol=1e-6)
  np.testing.assert_array_equal(active, (x > 0.25).sum(axis=-1))


def _verdicts(**members):
  return [each.verdict for each in instruct.findings(_result(members))]


def test_findings_agree_with_the_paper_where_it_is_planted():
  verdicts = _verdicts(
    base=("base", False, 0.6, (-0.1, 0.5), 20),
    base_scaled=("base", True, 0.6, 0.5, 18),
    tuned=("tuned", False, 0.4, (0.1, 0.5), 20),
  )
  # The rescaled one has a name of its own here: it is nobody's twin.
  assert verdicts == [AGREES, AGREES, AGREES, UNCLEAR]


def test_findings_disagree_where_the_opposite_is_planted():
  members = {
    "base": ("base", False, 0.4, (0.3, 0.9), 20),
    f"base{instruct.RESCALED}": ("base", True, 0.4, 0.9, 25),
    "tuned": ("tuned", False, 0.4, (0.1, 0.3), 20),
  }
  assert _verdicts(**members) == [DISAGREES] * 4


def test_rescaling_that_lowers_l0_agrees():
  members = {
    "base": ("base", False, 0.4, 0.5, 20),
    f"base{instruct.RESCALED}": ("base", True, 0.42, 0.5, 15),
  }
  result = _result(members)
  (twin,) = result["rescaling"]
  assert twin["parts"]["rollout"]["l0"]["mean"] < 0
  assert instruct.findings(result)[3].verdict == AGREES
  # Without SAEs of the tuned model there is nothing else to compare.
  assert not result["differences"]
  assert instruct.findings(result)[0].verdict == UNCLEAR


def test_noise_agrees_with_nothing_but_equality():
  members = {
    "base": ("base", False, 0.4, 0.5, 20),
    "tuned": ("tuned", False, 0.4, 0.5, 20),
  }
  found = [instruct.findings(_result(members, seed=seed)) for seed in range(20)]
  assert all(each[0].verdict == AGREES for each in found)
  assert sum(each[1].verdict == UNCLEAR for each in found) >= 17
  assert all(each[2].verdict == DISAGREES for each in found)  # it rises

"""Data with known latents, and what is measured on it."""

import numpy as np
import pytest

from gemmascope_jax import sae, synthetic, training
from gemmascope_jax.sae import SAE, Recipe
from gemmascope_jax.sae.sae import Params

LEARNABLE = Recipe(
  width=64,
  batch_size=256,
  steps=800,
  learning_rate=1e-2,
  learning_rate_warmup_steps=50,
  learning_rate_decay_share=0.5,
  adam_b1=0.9,
  sparsity_loss="l0_target",
  target_l0=1,
  sparsity_coefficient=1.0,
  sparsity_warmup_steps=300,
  threshold_init_l0=8.0,
  bandwidth=0.2,
  bias_init="mean",
)


@pytest.mark.parametrize("width", [2, 16, 64])
def test_two_bases_are_as_nearly_orthogonal_as_can_be(width):
  found = synthetic.two_bases(width, seed=1).astype(np.float64)
  gram = np.abs(found @ found.T)
  same, other = gram[:width, :width], gram[:width, width:]
  np.testing.assert_allclose(same, np.eye(width), atol=1e-6)
  np.testing.assert_allclose(other, width**-0.5, atol=1e-6)


def test_rows_are_what_the_stream_says_of_them():
  truth = synthetic.Truth(synthetic.random_directions(48, 16), l0=3, seed=2)
  stream = synthetic.Stream(truth, batch_size=200_000)
  c, x = truth.rows(200_000, step=5)
  np.testing.assert_array_equal(stream.batch(5), x)
  np.testing.assert_array_equal(stream.batch(5, slice(3, 7)), x[3:7])
  assert [step for step, _ in stream.iterate(4, 6)] == [4, 5]
  np.testing.assert_allclose(x, c @ truth.directions, atol=1e-6)
  fired = (c > 0).mean(axis=0)
  np.testing.assert_allclose(fired, 3 / 48, atol=4 * (3 / 48 / 2e5) ** 0.5)
  assert 0.5 <= c[c > 0].min() < c.max() <= 1.5
  np.testing.assert_allclose(x.mean(axis=0), stream.mean, atol=0.01)
  squares = np.square(x, dtype=np.float64).sum(axis=1)
  np.testing.assert_allclose(squares.mean(), stream.mean_square_norm, rtol=0.01)


def test_steps_and_seeds_have_rows_of_their_own():
  truths = [synthetic.Truth(np.eye(8, dtype=np.float32), 2, s) for s in (0, 1)]
  rows = [truth.rows(4, step)[1] for truth in truths for step in (0, 1)]
  assert len({row.tobytes() for row in rows}) == 4


def test_orthogonal_directions_are_recovered_by_who_knows_them():
  basis = synthetic.two_bases(16)[:16]
  truth = synthetic.Truth(basis, l0=2)
  found = synthetic.recovery(synthetic.informed(truth), truth)
  assert found.cosine > 0.9999 and found.f1 > 0.999
  assert found.l0 == pytest.approx(2, abs=0.05) and found.fvu < 1e-3


def test_a_latent_that_fires_too_often_or_is_turned_away_is_noticed():
  basis = np.eye(4, dtype=np.float32)
  truth = synthetic.Truth(basis, l0=1)

  def measured(decoder, threshold):
    zeros = np.zeros(4, np.float32)
    params = Params(basis, zeros, decoder, zeros, zeros + threshold)
    return synthetic.recovery(SAE(params), truth)

  exact = measured(basis, 0.25)
  assert exact == (1, 1, pytest.approx(1, abs=0.05), 0)
  # Half of the firings lie above the middle of the coefficients: F1 = 2/3.
  assert measured(basis, 1.0).f1 == pytest.approx(2 / 3, abs=0.02)
  turned = np.roll(basis, 1, axis=1) + basis
  assert measured(turned, 0.25).cosine == pytest.approx(0.5**0.5)


def test_training_finds_directions_in_superposition(tmp_path):
  truth = synthetic.Truth(synthetic.two_bases(16), l0=1)
  stream = synthetic.Stream(truth, LEARNABLE.batch_size)
  schedule = training.Schedule(progress=False)
  (path,) = training.train(stream, [LEARNABLE], tmp_path, schedule=schedule)
  found = synthetic.recovery(sae.load(path), truth)
  assert found.cosine > 0.95 and found.f1 > 0.88, found

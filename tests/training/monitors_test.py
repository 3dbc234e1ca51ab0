"""What log lines say, against NumPy and against what training did."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax import metrics, parallel, throughput, training
from gemmascope_jax.data.streams import feed
from gemmascope_jax.sae import sweep
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.training import monitors
from tests import rows_stream
from tests.sae.families import cases
from tests.training import run_test

RECIPE = dataclasses.replace(
  run_test.RECIPE, width=40, batch_size=4096, dead_after_rows=900_000
)


@pytest.fixture
def state():
  """After 300 steps, 60 of them since the last line."""
  rng = np.random.default_rng(0)
  made = sweep.init_fn(RECIPE)(jax.random.key(0), cases.sample(cases.rows()))
  params = made.params | {
    "threshold": jnp.asarray(rng.uniform(0.1, 1, 40), jnp.float32),
    "w_enc": jnp.asarray(rng.normal(size=(40, 6)), jnp.float32),
    "w_dec": made.params["w_dec"].at[7].multiply(1.25),
  }
  fired = (60 * 4096 * 10 ** rng.uniform(-7, 0, 40)).astype(np.int32)
  fired[:3] = 0
  last = rng.integers(0, 300, 40).astype(np.int32)
  last[20:] = 299
  last[0] = -1
  return made.replace(
    params=params,
    step=jnp.int32(300),
    fired=jnp.asarray(fired),
    last_fired=jnp.asarray(last),
    dense_steps=jnp.int32(15),
  )


def _line(state, mesh=None):
  since = {"step": jnp.int32(240), "threshold": jnp.full(40, 0.5)}
  seen = monitors.look(RECIPE, state, since, mesh)
  values = {"loss": 5.0, "squared_error": 3.0, "l0": 2.0, "kernel_share": 0.1}
  return monitors.line(RECIPE, "a", 0.25, values, jax.device_get(seen))


def test_a_line_says_what_numpy_does(state):
  line = _line(state)
  assert (line["name"], line["step"], line["rows"]) == ("a", 299, 300 * 4096)
  assert line["penalty"] == 2.0 and line["fvu"] == 0.75
  rate = np.asarray(state.fired, np.float64) / (60 * 4096)
  np.testing.assert_allclose(line["l0_mean"], rate.sum(), rtol=1e-5)
  assert line["dense_fraction"] == pytest.approx((rate > 0.1).mean())
  edges = np.linspace(-6, 0, 25)
  alive = np.clip(np.log10(rate[rate > 0]), -6, 0)
  expected, _ = np.histogram(alive, edges)
  assert line["firing_rates"] == {
    "from": -6.0,
    "to": 0.0,
    "counts": expected.tolist(),
    "never": int((rate == 0).sum()),
  }
  last = np.asarray(state.last_fired)
  silent = np.where(last < 0, 300, 299 - last)
  for key, rows in (
    ("dead_fraction", 200_000),
    ("dead_fraction_recipe", 900_000),
  ):
    dead = silent * 4096 >= rows
    assert line[key] == pytest.approx(dead.mean()) and 0 < dead.mean() < 1
  threshold = np.asarray(state.params["threshold"], np.float64)
  assert line["threshold_min"] == pytest.approx(threshold.min())
  assert line["threshold_max"] == pytest.approx(threshold.max())
  drift = np.abs(threshold - 0.5).mean() / max(threshold.mean(), 0.5)
  assert line["threshold_drift"] == pytest.approx(drift, rel=1e-5)
  assert line["decoder_norm_error"] == pytest.approx(0.25, rel=1e-5)
  norms = np.linalg.norm(np.asarray(state.params["w_enc"]), axis=1)
  assert line["encoder_norm"] == pytest.approx(norms.mean(), rel=1e-5)
  assert line["dense_step_share"] == 15 / 60
  assert "warnings" not in line


def test_a_line_is_the_same_on_many_devices(state):
  mesh = parallel.make_mesh({"model": 8})
  split = parallel.shard(state, mesh, parallel.SAE_RULES)
  one, many = _line(state), _line(split, mesh)
  for key, value in one.items():
    assert many[key] == (
      pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
    ), key


def test_counting_begins_anew_and_keeps_its_devices(state):
  mesh = parallel.make_mesh({"model": 8})
  state = parallel.shard(state, mesh, parallel.SAE_RULES)
  new, since = monitors.again(state, monitors.watch(state))
  assert int(since["step"]) == 300 and not new.fired.any()
  assert int(new.dense_steps) == 0
  assert new.fired.sharding == state.fired.sharding
  np.testing.assert_array_equal(new.last_fired, state.last_fired)


def test_families_without_thresholds_have_lines_too(state):
  params = {k: v for k, v in state.params.items() if k != "threshold"}
  state = state.replace(params=params)
  assert list(monitors.watch(state)) == ["step"]
  seen = monitors.look(RECIPE, state, monitors.watch(state), None)
  assert "threshold_drift" not in seen


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"kernel_share": 0.0}, "no pre-activation is inside"),
    ({"threshold_drift": 0.0}, "thresholds have not moved"),
    ({"dead_fraction": 0.95}, "95% of the latents are dead"),
    ({"sparsity_coefficient": 0.0, "kernel_share": 0.0}, None),
    ({}, None),
  ],
)
def test_what_is_wrong_is_said(change, says):
  line = {
    "sparsity_coefficient": 1e-3,
    "kernel_share": 0.1,
    "threshold_drift": 0.1,
    "dead_fraction": 0.1,
  }
  found = monitors.warnings(line | change)
  assert len(found) == (says is not None)
  assert not found or says in found[0]


def test_a_lambda_that_does_nothing_is_visible(tmp_path):
  """With the paper's threshold and bandwidth on rows of another scale."""
  recipe = dataclasses.replace(
    run_test.RECIPE,
    sparsity_coefficient=1.0,
    bandwidth=1e-9,
    threshold_init=1e-6,
    learning_rate=1e-12,
    steps=10,
  )
  run_test._train(tmp_path, [recipe])
  lines = metrics.read_jsonl(tmp_path / training.METRICS)
  assert all("lambda does nothing" in line["warnings"][0] for line in lines)


def test_lines_of_a_run_agree_with_each_other(tmp_path):
  """The mean L0 since a line is that of the steps since then."""
  stream = rows_stream.RowsStream(16)
  for name, every in (("each", 1), ("fifth", 5)):
    schedule = training.Schedule(log_every=every, progress=False)
    training.train(
      stream, run_test.SWEEP, tmp_path / name, seed=1, schedule=schedule
    )
  each, fifth = (
    metrics.read_jsonl(tmp_path / name / training.METRICS)
    for name in ("each", "fifth")
  )
  for line in fifth:
    same = [
      other["l0"]
      for other in each
      if other["name"] == line["name"]
      and line["step"] - 5 < other["step"] <= line["step"]
    ]
    assert len(same) == 5
    assert line["l0_mean"] == pytest.approx(np.mean(same), rel=1e-5)
    counts = line["firing_rates"]
    assert sum(counts["counts"]) + counts["never"] == 24
    assert line["decoder_norm_error"] < 1e-5
    assert 0 <= line["utilisation"] < 1 and line["gflops_per_second"] > 0
    assert line["seconds_per_step"] * line["rows_per_second"] == pytest.approx(
      16, rel=1e-2
    )
    assert sum(line["time"].values()) == pytest.approx(1, abs=0.01)


def test_dead_latents_are_counted_beyond_two_to_the_31_rows(state):
  state = state.replace(
    step=jnp.int32(976_563), last_fired=jnp.full(40, -1, jnp.int32)
  )
  assert monitors.dead_fraction(RECIPE, state) == 1.0
  state = state.replace(last_fired=jnp.full(40, 976_562, jnp.int32))
  assert monitors.dead_fraction(RECIPE, state) == 0.0


def test_early_on_dead_is_silent_for_half_of_the_rows(state):
  last = jnp.where(jnp.arange(40) < 10, 3, 15)
  state = state.replace(step=jnp.int32(20), last_fired=last.astype(jnp.int32))
  assert monitors.dead_fraction(RECIPE, state) == 0.25
  assert monitors.dead_window(RECIPE, state) == 10 * RECIPE.batch_size
  assert _line(state)["dead_fraction"] == 0.25
  late = state.replace(step=jnp.int32(1_000))
  assert monitors.dead_window(RECIPE, late) == 49 * 4096  # 200,000 and more


def test_the_limit_is_what_took_longest():
  clock = throughput.Meter()
  batches = feed.Feed(rows_stream.RowsStream(16))
  with clock.waiting(monitors.CHECKPOINT):
    sum(range(10**6))
  clock.add(16, 16)
  found = monitors.timing(clock, batches, 16, flops=1e6, peak=1e9)
  assert found["limit"] == monitors.CHECKPOINT
  rate = 1e6 * found["rows_per_second"] / 16
  assert found["utilisation"] == pytest.approx(rate / 1e9, abs=1e-4)


def test_the_progress_line_shows_every_member():
  line = {"l0": 49.6, "fvu": 0.0123, "limit": "step", "time": {"step": 0.97}}
  assert monitors.postfix({}) == ""
  assert monitors.postfix({"a": line, "b": line | {"l0": 20.2}}) == (
    "L0 50 20, FVU 0.012 0.012, limit: step (97%)"
  )


def test_the_default_recipe_names_its_dead():
  assert Recipe().dead_after_rows > monitors.DEAD_AFTER_ROWS

"""The loop: exact resume, members as if alone, errors that lose nothing."""

import dataclasses
import functools
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from gemmascope_jax import metrics, parallel, sae, training
from gemmascope_jax.data.streams.order import Shuffle
from gemmascope_jax.releases import gemma_scope
from gemmascope_jax.sae import sweep
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.train_step import Knobs
from tests import rows_stream
from tests.digests import digests
from tests.sae.families import cases

RECIPE = Recipe(
  width=24,
  batch_size=16,
  steps=30,
  learning_rate=1e-2,
  learning_rate_warmup_steps=3,
  sparsity_warmup_steps=5,
  bandwidth=0.1,
  threshold_init=0.05,
  sparsity_coefficient=1e-3,
)
SWEEP = [RECIPE, dataclasses.replace(RECIPE, sparsity_coefficient=5e-2)]
NAMES = [recipe.name for recipe in SWEEP]
QUIET = training.Schedule(log_every=5, checkpoint_every=7, progress=False)


def _digest(folder: pathlib.Path) -> dict[str, str]:
  return digests(folder, pattern="params.npz")


def _train(folder, recipes=SWEEP, mesh=None, **options):
  stream = rows_stream.RowsStream(RECIPE.batch_size, **options)
  return training.train(
    stream, recipes, folder, seed=1, schedule=QUIET, mesh=mesh
  )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole")
  return folder, _train(folder)


def test_training_learns_and_lambda_sparsifies(whole):
  folder, members = whole
  lines = metrics.read_jsonl(folder / training.METRICS)
  dense, sparse = ({line["name"]: line for line in lines}[n] for n in NAMES)
  assert dense["fvu"] < 0.7 * lines[0]["fvu"]
  assert sparse["l0"] < dense["l0"]
  assert {line["step"] for line in lines} == {4, 9, 14, 19, 24, 29}
  assert len(members) == 2 and all(map(gemma_scope.is_whole, members))


def test_again_gives_the_same_bytes_and_a_member_alone_too(whole, tmp_path):
  folder, members = whole
  again = _train(tmp_path / "again")
  alone = _train(tmp_path / "alone", recipes=[SWEEP[1]])
  assert _digest(tmp_path / "again") == _digest(folder)
  assert _digest(alone[0]) == _digest(members[1])
  assert _digest(again[0]) != _digest(again[1])


def test_a_run_killed_anywhere_ends_in_the_same_bytes(whole, tmp_path):
  folder, _ = whole
  script = f"""
import tests.conftest, tests.rows_stream, tests.training.run_test as t
t._train({str(tmp_path)!r}, pause=0.05)
"""
  for seconds in (0.2, 0.7, 1.3):
    worker = subprocess.Popen(
      [sys.executable, "-c", script],
      cwd=pathlib.Path(__file__).parent.parent.parent,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / training.METRICS).exists():
      assert time.monotonic() < deadline and worker.poll() is None
      time.sleep(0.05)
    time.sleep(seconds)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
  members = _train(tmp_path)
  assert all(map(gemma_scope.is_whole, members))
  assert _digest(tmp_path) == _digest(folder)
  steps = [
    (line["step"], NAMES.index(line["name"]))
    for line in metrics.read_jsonl(tmp_path / training.METRICS)
  ]
  assert steps == sorted(set(steps))


def test_a_finished_run_is_not_trained_again(whole):
  folder, members = whole
  times = [os.stat(path / "params.npz").st_mtime_ns for path in members]
  assert _train(folder) == members
  assert [os.stat(p / "params.npz").st_mtime_ns for p in members] == times


def test_the_members_load_through_the_front_door(whole):
  folder, _ = whole
  found = sae.load(folder, member=1)
  assert found.width == 24 and found.config.site == "res.0"
  assert found.config.details()["recipe"]["sparsity_coefficient"] == 5e-2
  np.testing.assert_allclose(
    np.linalg.norm(found.params.w_dec, axis=1), np.ones(24), rtol=1e-5
  )
  with pytest.raises(ValueError, match="holds 2 SAEs: name the folder of one"):
    sae.load(folder)


def test_another_run_is_refused(whole):
  folder, _ = whole
  stream = rows_stream.RowsStream(RECIPE.batch_size)
  with pytest.raises(ValueError, match="another run: its seed is 1, not 2"):
    training.train(stream, SWEEP, folder, seed=2, schedule=QUIET)


def test_what_differs_is_named_and_not_only_its_hash(whole):
  folder, _ = whole
  stream = rows_stream.RowsStream(RECIPE.batch_size)
  stream.shuffle, stream.fingerprint = Shuffle(bucket_rows=100), "another"
  says = "its shuffle.bucket_rows is 1048576, not 100. Choose"
  with pytest.raises(ValueError, match=says):
    training.train(stream, SWEEP, folder, seed=1, schedule=QUIET)


def test_not_finite_stops_with_the_batch_saved(tmp_path):
  with pytest.raises(training.NonFiniteError, match="at step 9") as error:
    _train(tmp_path, poisoned=9)
  saved = np.load(tmp_path / "not_finite_step_9.npy")
  assert np.isnan(saved).any() and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
  ("recipes", "says"),
  [
    ([], "the sweep is empty"),
    ([RECIPE, RECIPE], "twice"),
    ([RECIPE, dataclasses.replace(RECIPE, normalise="none")], "normalise"),
    ([dataclasses.replace(RECIPE, batch_size=8)], "the stream's 16"),
  ],
)
def test_sweeps_that_make_no_sense_are_refused(tmp_path, recipes, says):
  with pytest.raises(ValueError, match=says):
    _train(tmp_path, recipes=recipes)


@pytest.mark.parametrize("axes", [{"model": 8}, {"data": 4, "model": 2}])
def test_a_mesh_gives_the_same_saes_to_rounding(whole, tmp_path, axes):
  folder, _ = whole
  mesh = parallel.make_mesh(axes)
  _train(tmp_path, mesh=mesh)
  for member in (0, 1):
    one, split = sae.load(folder, member), sae.load(tmp_path, member)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3),
      split.params,
      one.params,
    )
  losses = [
    [line["loss"] for line in metrics.read_jsonl(path / training.METRICS)]
    for path in (folder, tmp_path)
  ]
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_no_device_holds_more_than_its_latents():
  mesh = parallel.make_mesh({"model": 8})
  stream = rows_stream.RowsStream(RECIPE.batch_size)
  rows = jax.numpy.asarray(stream.batch(0))
  state = sweep.init_fn(RECIPE)(jax.random.key(0), cases.sample(rows))
  state = parallel.shard(state, mesh, parallel.SAE_RULES)
  for _ in range(2):
    state, _ = sweep.step_fn(RECIPE, mesh)(state, rows, rows, Knobs.of(RECIPE))
  for tree in (state.params, state.opt_state.nu):
    for name in ("w_enc", "w_dec", "b_enc", "threshold"):
      leaf = tree[name]
      held = {shard.data.size for shard in leaf.addressable_shards}
      assert held == {leaf.size // 8}, name

"""Members join, rest, end and come back, each as if it were alone."""

import dataclasses
import os
import pathlib
import signal

import jax
import numpy as np
import pytest

from gemmascope_jax import artifacts, metrics, parallel, sae, training
from gemmascope_jax.releases import gemma_scope
from gemmascope_jax.training import loop, preemption
from tests import rows_stream
from tests.training import run_test

A, B = run_test.SWEEP
# As unlike as members of one stream can be.
MIXED = [
  A,
  dataclasses.replace(B, steps=17, seed=3),
  dataclasses.replace(A, width=16, learning_rate=3e-3, step="dense"),
  dataclasses.replace(A, family="batch_topk", k=4, step="dense", steps=12),
]
_SAMPLE_STEPS = rows_stream.RowsStream.rows // A.batch_size


class Stream(rows_stream.RowsStream):
  """Calls functions when training reads the batches of certain steps."""

  def __init__(self, at=None, **options):
    super().__init__(A.batch_size, **options)
    self._at, self.trained_on = at or {}, []

  def iterate(self, start=0, stop=None, *, part=slice(None)):
    for step, batch in super().iterate(start, stop, part=part):
      if stop != _SAMPLE_STEPS:
        self.trained_on.append(step)
        self._at.get(step, lambda: None)()
      yield step, batch


def _train(folder, recipes, at=None, **options):
  stream = Stream(at)
  schedule = options.pop("schedule", run_test.QUIET)
  found = training.train(
    stream, recipes, folder, seed=1, schedule=schedule, **options
  )
  return stream, found


def _digest(folder: pathlib.Path) -> str:
  return artifacts.sha256_file(folder / gemma_scope.ARRAYS)


def _interrupt():
  # Not os.kill, whose signal another thread may be given, and the main one late.
  signal.raise_signal(signal.SIGINT)


def _terminate():
  signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """Recipe -> the digest of its SAE, trained alone."""
  made = {}

  def get(recipe):
    if recipe not in made:
      _, (path,) = _train(tmp_path_factory.mktemp("alone"), [recipe])
      made[recipe] = _digest(path)
    return made[recipe]

  return get


def test_each_of_a_mixed_sweep_is_as_if_alone(tmp_path, alone):
  _, found = _train(tmp_path, MIXED)
  for recipe, path in zip(MIXED, found, strict=True):
    assert _digest(path) == alone(recipe), recipe.name
  assert len({_digest(path) for path in found}) == len(MIXED)
  steps = {}
  for line in metrics.read_jsonl(tmp_path / training.METRICS):
    steps.setdefault(line["name"], []).append(line["step"])
  assert steps[A.name] == [4, 9, 14, 19, 24, 29]
  assert steps[MIXED[1].name] == [4, 9, 14, 16]


def test_a_new_member_joins_while_finished_ones_rest(tmp_path, alone):
  _, (first,) = _train(tmp_path, [A])
  written = os.stat(first / gemma_scope.ARRAYS).st_mtime_ns
  _, found = _train(tmp_path, [B, A])
  assert found[1] == first and _digest(found[0]) == alone(B)
  assert os.stat(first / gemma_scope.ARRAYS).st_mtime_ns == written
  details = [
    sae.load(tmp_path, i).config.details()["recipe"]["sparsity_coefficient"]
    for i in (0, 1)
  ]
  assert details == [B.sparsity_coefficient, A.sparsity_coefficient]
  stream, found = _train(tmp_path, [B])
  assert not stream.trained_on and first.exists()
  assert sae.load(tmp_path).params.w_dec.shape == (24, 8)
  np.testing.assert_array_equal(
    sae.load(tmp_path, first.name).params.w_enc, sae.load(first).params.w_enc
  )


def test_a_member_that_was_killed_goes_on_beside_a_new_one(tmp_path, alone):
  with pytest.raises(training.PreemptedError, match="same command goes on"):
    _train(tmp_path, [A], at={12: _terminate})
  stream, found = _train(tmp_path, [A, B])
  assert stream.trained_on == list(range(30))
  assert [_digest(path) for path in found] == [alone(A), alone(B)]


@pytest.fixture
def ctrl_c():
  """Python's own handler of SIGINT, which background jobs do not have."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield signal.default_int_handler
  signal.signal(signal.SIGINT, before)


def test_the_first_ctrl_c_saves(tmp_path, alone, ctrl_c):
  with pytest.raises(training.PreemptedError, match="SIGINT") as error:
    _train(tmp_path, [A], at={12: _interrupt})
  assert error.value.signal == signal.SIGINT
  assert signal.getsignal(signal.SIGINT) is ctrl_c
  stream, (path,) = _train(tmp_path, [A])
  assert stream.trained_on[0] >= 10 and _digest(path) == alone(A)


def test_the_second_ctrl_c_stops_at_once(ctrl_c):
  with preemption.notice() as asked:
    assert asked(0) is None
    _interrupt()
    assert asked(1) == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
      _interrupt()
  assert signal.getsignal(signal.SIGINT) is ctrl_c


def test_an_ignored_ctrl_c_stays_ignored(ctrl_c):
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with preemption.notice() as asked:
    _interrupt()
    assert asked(0) is None


def test_sigterm_saves_and_the_log_is_that_of_a_run_left_alone(tmp_path):
  _train(tmp_path / "whole", run_test.SWEEP)
  handler = signal.getsignal(signal.SIGTERM)
  with pytest.raises(training.PreemptedError):
    _train(tmp_path / "cut", run_test.SWEEP, at={17: _terminate})
  assert signal.getsignal(signal.SIGTERM) is handler
  members = training.members(tmp_path / "cut", run_test.SWEEP)
  saved = {int(p.name) for p in members[0].checkpoints.glob("[0-9]*")}
  assert saved & {15, 16, 17, 18}
  stream, _ = _train(tmp_path / "cut", run_test.SWEEP)
  assert stream.trained_on[0] == max(saved)
  timed = {"rows_per_second", "bytes_per_second", "seconds_per_step", "time"}
  timed |= {"gflops_per_second", "utilisation", "limit"}
  lines = [
    [
      {key: value for key, value in line.items() if key not in timed}
      for line in metrics.read_jsonl(tmp_path / name / training.METRICS)
    ]
    for name in ("whole", "cut")
  ]
  assert lines[0] == lines[1]


def test_a_member_rests_while_its_stop_file_is_there(
  tmp_path, alone, monkeypatch
):
  monkeypatch.setattr(loop, "_REQUESTS_EVERY_S", 0.0)
  stop = training.members(tmp_path, [B])[0].stop
  touch = lambda: stop.write_text("")
  _, found = _train(tmp_path, [A, B], at={11: touch})
  assert [_digest(path) for path in found] == [alone(A)]
  with pytest.raises(FileNotFoundError, match="has not finished"):
    sae.load(tmp_path, member=1)
  stream, found = _train(tmp_path, [A, B])
  assert not stream.trained_on and len(found) == 1
  stop.unlink()
  stream, found = _train(tmp_path, [A, B])
  assert 8 <= stream.trained_on[0] <= 12
  assert [_digest(path) for path in found] == [alone(A), alone(B)]


def test_the_stream_skips_steps_that_nobody_needs(tmp_path, alone):
  """One member rests at 20 steps or so, a new one of 9 steps joins."""
  with pytest.raises(training.PreemptedError):
    _train(tmp_path, [A], at={20: _terminate})
  short = dataclasses.replace(B, steps=9)
  stream, found = _train(tmp_path, [A, short])
  assert stream.trained_on[:9] == list(range(9))
  assert 17 <= stream.trained_on[9] <= 21
  assert [_digest(path) for path in found] == [alone(A), alone(short)]


@pytest.mark.parametrize("axes", [(None, {"model": 8}), ({"model": 4}, None)])
def test_a_run_goes_on_on_other_devices(tmp_path, axes):
  before, after = (a and parallel.make_mesh(a) for a in axes)
  with pytest.raises(training.PreemptedError):
    _train(tmp_path, [A], at={15: _terminate}, mesh=before)
  _, (path,) = _train(tmp_path, [A], mesh=after)
  _, (whole,) = _train(tmp_path / "whole", [A])
  found, expected = (np.load(p / gemma_scope.ARRAYS) for p in (path, whole))
  for name in expected.files:
    np.testing.assert_allclose(
      found[name], expected[name], rtol=1e-3, atol=1e-3
    )


def test_names_are_unique_and_do_not_change_with_the_list(tmp_path):
  fast = dataclasses.replace(A, learning_rate=2e-2)
  names = lambda recipes: [
    member.name for member in training.members(tmp_path, recipes)
  ]
  first, second = names([A, fast])
  assert first == A.name and second.startswith(A.name + " ")
  assert names([fast]) == [A.name]  # nothing is on disk yet
  _train(tmp_path, [dataclasses.replace(A, steps=1)])
  _train(tmp_path, [dataclasses.replace(fast, steps=1)])
  a, b = (dataclasses.replace(r, steps=1) for r in (A, fast))
  assert names([a, b]) == [first, names([b])[0]]
  assert names([b, a]) == names([a, b])[::-1]
  assert names([b])[0].startswith(A.name + " ")
  member = training.members(tmp_path, [dataclasses.replace(B, steps=1)])[0]
  assert "its sparsity_coefficient is 0.001, not 0.05" in training.nearest(
    member
  )


def test_checkpoints_come_by_the_clock(tmp_path, monkeypatch):
  monkeypatch.setattr(loop, "_REQUESTS_EVERY_S", 0.0)
  schedule = training.Schedule(
    checkpoint_every=1_000, checkpoint_minutes=1e-9, progress=False
  )
  with pytest.raises(RuntimeError, match="cut"):
    _train(tmp_path, [A], at={20: _cut}, schedule=schedule)
  (member,) = training.members(tmp_path, [A])
  assert any(int(p.name) > 5 for p in member.checkpoints.glob("[0-9]*"))


def _cut():
  raise RuntimeError("cut")


def test_the_best_checkpoint_is_kept(tmp_path):
  schedule = training.Schedule(
    log_every=1,
    checkpoint_every=1,
    keep_checkpoints=1,
    keep_best="fvu",
    progress=False,
  )
  wild = dataclasses.replace(B, learning_rate=0.3)
  _train(tmp_path, [wild], schedule=schedule)
  (member,) = training.members(tmp_path, [wild])
  lines = metrics.read_jsonl(tmp_path / training.METRICS)
  best = min(lines, key=lambda line: line["fvu"])["step"] + 1
  kept = {int(path.name) for path in member.checkpoints.glob("[0-9]*")}
  assert kept == {best, A.steps} and best != A.steps


def test_a_damaged_sae_is_written_again_without_training(tmp_path, alone):
  _, (path,) = _train(tmp_path, [A])
  (path / gemma_scope.ARRAYS).write_bytes(b"damaged")
  stream, (path,) = _train(tmp_path, [A])
  assert _digest(path) == alone(A) and not stream.trained_on


def test_the_member_that_is_not_finite_is_named(tmp_path):
  wild = dataclasses.replace(B, learning_rate=1e38)
  with pytest.raises(training.NonFiniteError, match=f"^{wild.name}: the loss"):
    _train(tmp_path, [A, wild])
  (batch,) = tmp_path.glob("not_finite_step_*.npy")
  assert np.load(batch).shape == (16, 8)


def test_the_others_finish_as_if_alone(tmp_path, alone):
  wild = dataclasses.replace(B, learning_rate=1e38)
  with pytest.raises(training.NonFiniteError, match="other members went on"):
    _train(tmp_path, [wild, A])
  ruined, good = training.members(tmp_path, [wild, A])
  assert _digest(good.finished) == alone(A) and not ruined.is_whole
  stream, (path,) = _train(tmp_path, [A])
  assert path == good.finished and not stream.trained_on


def test_another_recipe_of_the_same_name_begins_with_a_warning(
  tmp_path, caplog
):
  _train(tmp_path, [A])
  assert "another SAE" not in caplog.text
  _train(tmp_path, [dataclasses.replace(A, steps=A.steps + 1)])
  assert f"its steps is {A.steps}, not {A.steps + 1}" in caplog.text


def test_what_a_newer_version_wrote_is_not_taken_for_another(tmp_path):
  (member,) = training.members(tmp_path, [A])
  recipe = dataclasses.asdict(A) | {"from_the_future": 1}
  path = tmp_path / "members" / member.slug / "recipe.json"
  artifacts.write_json(path, {"name": member.name, "recipe": recipe})
  (again,) = training.members(tmp_path, [A])
  assert again.name != member.name


def test_a_mesh_trains_all_kinds_of_members(tmp_path):
  mesh = parallel.make_mesh({"data": 2, "model": 4})
  _, found = _train(tmp_path, MIXED[:2], mesh=mesh)
  assert all(map(gemma_scope.is_whole, found))
  assert len(jax.devices()) == 8


@pytest.mark.parametrize(
  ("change", "name"),
  [
    ({}, "jumprelu M=24 lambda=0.001"),
    ({"seed": 3}, "jumprelu M=24 lambda=0.001 seed=3"),
    ({"skip": True}, "jumprelu M=24 lambda=0.001 skip"),
    (
      {"frozen": ("w_dec",), "seed": 3},
      "jumprelu M=24 lambda=0.001 random decoder seed=3",
    ),
    (
      {"sparsity_loss": "l0_target", "target_l0": 5.0},
      "jumprelu M=24 L0=5",
    ),
    ({"family": "topk", "k": 7}, "topk M=24 k=7"),
  ],
)
def test_a_name_says_what_sets_the_sparsity(change, name):
  assert dataclasses.replace(A, **change).name == name

"""Where lines go: the file, and trackers where they are installed."""

import glob
import json

import pytest

from gemmascope_jax import artifacts, metrics

LINE = {
  "name": "a b=1",
  "step": 3,
  "l0": 2.5,
  "time": {"step": 0.75, "disk": 0.25},
  "limit": "step",
  "warnings": ["something"],
  "firing_rates": {"from": -6.0, "to": 0.0, "counts": [1, 2, 3], "never": 4},
}


def test_metrics_cut_off_by_a_kill_are_read(tmp_path):
  path = tmp_path / "metrics.jsonl"
  one, two = {"name": "a", "step": 1}, {"name": "a", "step": 2}
  other = {"name": "b", "step": 9}
  text = "".join(json.dumps(line) + "\n" for line in (one, other, two))
  artifacts.write_text(path, text + '{"st')
  assert metrics.read_jsonl(path) == [one, other, two]
  with metrics.open_loggers(path, {"a": 2, "c": 0}) as (writer,):
    writer.write(two | {"again": True})
  assert metrics.read_jsonl(path) == [one, other, two | {"again": True}]
  artifacts.write_text(path, '{"st\n{"step": 2}\n')
  with pytest.raises(ValueError, match="line 1: not JSON"):
    metrics.read_jsonl(path)


def test_numbers_are_flat():
  assert metrics.numbers(LINE) == {
    "step": 3,
    "l0": 2.5,
    "time/step": 0.75,
    "time/disk": 0.25,
  }


def test_an_unknown_tracker_is_refused():
  with pytest.raises(ValueError, match="'aim'; expected some of tensorboard"):
    metrics.check(["aim"])


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
  monkeypatch.setitem(metrics.TRACKERS, "wandb", "not_installed_here")
  with pytest.raises(ImportError, match="pip install not_installed_here"):
    metrics.check(["wandb"])


def test_tensorboard_shows_only_the_last_of_what_was_made_twice(tmp_path):
  pytest.importorskip("tensorboardX")
  from tensorboardX.proto import event_pb2

  for first in (2, 0, 3):
    with metrics.open_loggers(
      tmp_path / "metrics.jsonl", {LINE["name"]: first}, ["tensorboard"]
    ) as loggers:
      for logger in loggers:
        logger.write(LINE)
  events = []
  for path in sorted(glob.glob(str(tmp_path / "tensorboard/a_b_1/*"))):
    with open(path, "rb") as file:
      while head := file.read(12):
        size = int.from_bytes(head[:8], "little")
        event = event_pb2.Event()
        event.ParseFromString(file.read(size))
        file.read(4)
        events.append(event)
  scalars = {
    value.tag: value.simple_value
    for event in events
    for value in event.summary.value
  }
  assert scalars["l0"] == 2.5 and scalars["time/disk"] == 0.25
  starts = [e.step for e in events if e.session_log.status == 1]
  assert starts == [3]  # hides what came after in the file before
  assert len(events) < 2 * 10
  assert len(metrics.read_jsonl(tmp_path / "metrics.jsonl")) == 1


def test_weights_and_biases_takes_lines_offline(tmp_path, monkeypatch, capfd):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  with metrics.open_loggers(
    tmp_path / "metrics.jsonl", {LINE["name"]: 0}, ["wandb"], {"seed": 0}
  ) as loggers:
    for logger in loggers:
      logger.write(LINE)
  assert list((tmp_path / "wandb").glob("offline-run-*"))
  summary = capfd.readouterr().err
  for key, value in (("l0", 2.5), ("step", 3), ("time/disk", 0.25)):
    assert f"a b=1/{key} {value}\n" in summary

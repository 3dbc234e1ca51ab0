"""SAEs whose latents are spread over processes: trained, saved and loaded."""

import json
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from gemmascope_jax import metrics, training
from gemmascope_jax.sae.config import Recipe

ROOT = pathlib.Path(__file__).parent.parent.parent
ROWS = 16
_COMMON = {
  "width": 32,
  "batch_size": ROWS,
  "steps": 12,
  "learning_rate": 1e-2,
  "learning_rate_warmup_steps": 3,
  "sparsity_warmup_steps": 0,
  "sparsity_coefficient": 1e-2,
  "bandwidth": 0.1,
  "threshold_init": 0.05,
}
RECIPES = [
  Recipe(**_COMMON, threshold_init_l0=8.0),
  Recipe(**_COMMON, family="gated"),
  Recipe(**_COMMON, family="batch_topk", k=4),
]


def run(count, folder):
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = found.getsockname()[1]
  command = [sys.executable, "-m", "tests.parallel.latents_process", str(port)]
  started = [
    subprocess.Popen(
      [*command, str(process), str(count), str(folder)],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for process in range(count)
  ]
  try:
    for process in started:
      said, _ = process.communicate(timeout=240)
      assert process.returncode == 0, said
  finally:
    for process in started:
      process.kill()
      process.wait()
  lines = metrics.read_jsonl(folder / training.METRICS)
  saes = [dict(np.load(f)) for f in sorted(folder.glob("saes/*/params.npz"))]
  return lines, saes


@pytest.mark.slow
def test_two_processes_make_the_saes_of_one(tmp_path):
  (one, one_saes), (two, two_saes) = (
    run(count, tmp_path / str(count)) for count in (1, 2)
  )
  keys = [(line["name"], line["step"]) for line in one]
  assert [(line["name"], line["step"]) for line in two] == keys
  assert len(keys) == len(RECIPES) * 3
  losses = [[line["loss"] for line in lines] for lines in (one, two)]
  np.testing.assert_allclose(*losses, rtol=1e-5)
  assert len(one_saes) == len(two_saes) == len(RECIPES)
  for a, b in zip(one_saes, two_saes, strict=True):
    for key, value in a.items():
      np.testing.assert_allclose(b[key], value, rtol=1e-3, atol=1e-3)
  cards = [
    [
      json.loads(f.read_text())
      for f in sorted((tmp_path / n).glob("saes/*/*.json"))
    ]
    for n in ("1", "2")
  ]
  for a, b in zip(*cards, strict=True):
    assert a["provenance"] == b["provenance"]

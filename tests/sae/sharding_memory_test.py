"""What a device of a mesh holds, from the compiled step."""

import json
import pathlib
import subprocess
import sys

import pytest

from gemmascope_jax.sae import costs
from gemmascope_jax.sae.config import Recipe

SCRIPT = pathlib.Path(__file__).parent / "compile_wide.py"


def test_a_2_20_latent_sae_of_9b_fits_16_devices_as_derived():
  done = subprocess.run(
    [sys.executable, SCRIPT], capture_output=True, text=True, timeout=240
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["state"] == pytest.approx(found["derived_state"], rel=0.01)
  assert found["held"] == pytest.approx(found["derived"], rel=0.1)


def test_the_derivation_by_hand():
  recipe = Recipe(width=2**20, batch_size=4096)
  matrix, code, rows = 2**16 * 3584, 4096 * 2**16, 4096 * 3584
  assert costs.state_bytes(recipe, 3584, 3584, 16) == 4 * 4 * matrix
  assert costs.peak_bytes(recipe, 3584, 3584, model=16) == 4 * (
    5 * matrix + 4 * code + 4 * rows
  )
  adam = Recipe(width=2**20, adam_b1=0.9)
  assert costs.state_bytes(adam, 3584, 2304, 16) == 3 * 4 * 2**16 * 5888

"""Two processes that load one model: what each reads, and what both compute."""

import json
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import tiny_files

from gemmascope_jax.data.stores import forward
from tests.gemma.weights import read_process, safetensors_file_test

ROOT = pathlib.Path(__file__).parent.parent.parent.parent


@pytest.mark.skipif(
  not pathlib.Path("/proc/self/io").exists(), reason="the system does not count"
)
def test_each_process_reads_only_its_part(tmp_path):
  config = safetensors_file_test.CONFIG
  params = tiny_files.random_params(config)
  tensors = tiny_files.hf_tensors(params)
  tiny_files.write_hf(tmp_path, tensors, tiny_files.hf_fields(config))
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = found.getsockname()[1]
  started = [
    subprocess.Popen(
      [
        sys.executable,
        "-m",
        "tests.gemma.weights.read_process",
        *(str(port), str(process), "2", str(tmp_path)),
      ],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for process in range(2)
  ]
  said = []
  try:
    for process in started:
      out, error = process.communicate(timeout=240)
      assert process.returncode == 0, error
      said.append(json.loads(out.splitlines()[-1]))
  finally:
    for process in started:
      process.kill()
      process.wait()
  expected = forward.taps(
    params,
    read_process.tokens(),
    None,
    config=config,
    sites=("res.1",),
    dtype="float32",
  )["res.1"]
  for each in said:
    np.testing.assert_allclose(
      each["activations"], expected, rtol=1e-5, atol=1e-4
    )
    # A process has one row of the mesh, data, and both columns, model: all of
    # the model if only that is split, and half of it if both are.
    shared, split = each["False"], each["True"]
    assert shared["counted"] == shared["of"]
    parted = split["of"] - split["whole"]
    assert split["counted"] == split["whole"] + parted / 2
    assert split["whole"] < 0.02 * split["of"]
    for found in (shared, split):  # by the kernel's count, files' headers apart
      assert 0 <= found["system"] - found["counted"] < 0.1 * found["of"]

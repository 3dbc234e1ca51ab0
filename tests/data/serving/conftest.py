"""Servers for these tests; the store is that of the folder above."""

import dataclasses
import pathlib
import socket
import subprocess

import jax
import numpy as np
import pytest
import tiny_gemma

from gemmascope_jax import gemma
from gemmascope_jax.data.serving.server import StoreServer, owned_rows
from gemmascope_jax.data.stores.harvest import harvest


@pytest.fixture(scope="session")
def wide_store(lm, tmp_path_factory):
  """Rows as wide as a real model's: 900 of width 2304, 8 MiB."""
  config = dataclasses.replace(tiny_gemma.CONFIG, width=2304, num_layers=1)
  shapes = jax.eval_shape(lambda: gemma.init(config, jax.random.key(0)))
  random = np.random.default_rng(0)
  draw = lambda x: random.normal(0, 0.2, x.shape).astype(x.dtype)
  params = jax.tree.map(draw, shapes)
  return harvest(
    dataclasses.replace(lm, config=config, params=params),
    tiny_gemma.windows(),
    ("res.0",),
    tmp_path_factory.mktemp("store") / "wide",
    tiny_gemma.POLICY,
    **tiny_gemma.OPTIONS,
  )


@pytest.fixture
def serve(store):
  """Starts servers of the store in this process."""
  servers = []

  def start(part=0, parts=1, **options):
    of = options.pop("store", store)
    options.setdefault("buffer_bytes", 1 << 20)
    owned = owned_rows(of.plan, part, parts)
    servers.append(StoreServer(of, owned=owned, **options))
    return servers[-1]

  yield start
  for server in servers:
    server.close()


@pytest.fixture
def processes():
  """Processes that are killed in the end."""
  started = []

  def start(arguments, **options):
    started.append(
      subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=pathlib.Path(__file__).parents[3],
        **options,
      )
    )
    return started[-1]

  yield start
  for process in started:
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def free_port():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]

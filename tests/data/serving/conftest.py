"""Servers for these tests; the store is that of the folder above."""

import pathlib
import socket
import subprocess

import pytest

from gemmascope_jax.data.serving.server import StoreServer, owned_rows


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

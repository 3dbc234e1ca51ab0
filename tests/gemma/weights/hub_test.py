"""Ids on the Hub: a server that speaks its protocol, and our client's process."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest
import tiny_files

from gemmascope_jax import gemma
from gemmascope_jax.gemma.weights import hub, huggingface

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Loads each source in turn; prints what came of it.
_CLIENT = """
import json, sys
from gemmascope_jax import gemma
for source, num_layers in json.loads(sys.argv[1]):
  try:
    lm = gemma.load(source, num_layers=num_layers)
    result = {
      "hash": lm.weights_hash,
      "label": lm.label,
      "params": sorted(lm.params),
      "words": lm.tokenizer.encode("w7 w9"),
    }
  except Exception as error:
    result = {
      "error": [cls.__name__ for cls in type(error).__mro__],
      "message": str(error),
    }
  print("RESULT", json.dumps(result))
"""


class _Hub(http.server.BaseHTTPRequestHandler):
  """Serves `server.folder` as the repository org/tiny."""

  protocol_version = "HTTP/1.1"

  def log_message(self, *args):
    pass

  def do_HEAD(self):
    self._answer(body=False)

  def do_GET(self):
    self._answer(body=True)

  def _answer(self, body):
    parts = self.path.split("?")[0].strip("/").split("/")
    about = parts[:2] == ["api", "models"]  # /api/models/REPO/revision/REVISION
    parts = [*parts[2:], "revision", "main"][:5] if about else parts
    repo, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
    if about and repo in ("org/gated", "org/forbidden"):
      return self._describe(repo)
    if repo == "org/gated":
      return self._refuse(401, "GatedRepo")
    if repo == "org/forbidden":
      return self._refuse(403, "GatedRepo")
    if repo != "org/tiny":
      return self._refuse(401, "RepoNotFound")
    if revision not in ("main", "v1", COMMIT):
      return self._refuse(404, "RevisionNotFound")
    if about:
      return self._describe(repo)
    path = self.server.folder / file
    if not path.is_file():
      return self._refuse(404, "EntryNotFound")
    data = path.read_bytes()
    self.server.log.append((self.command, revision, file))
    self.send_response(200)
    self.send_header("X-Repo-Commit", COMMIT)
    self.send_header("Content-Length", str(len(data)))
    if file.endswith(".safetensors"):  # large files go by their SHA-256
      self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
      self.send_header("X-Linked-Size", str(len(data)))
    self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
    self.end_headers()
    if body:
      self.wfile.write(data)

  def _describe(self, repo):
    data = json.dumps({"id": repo, "sha": COMMIT}).encode()
    self.send_response(200)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def _refuse(self, status, code):
    self.send_response(status)
    self.send_header("X-Error-Code", code)
    self.send_header("Content-Length", "0")
    self.end_headers()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """A served repository with a layer a file, and a home without anything."""
  root = tmp_path_factory.mktemp("hub")
  folder = tiny_files.write_hf(
    root / "served",
    tiny_files.hf_tensors(tiny_files.random_params()),
    shards=3,
  )
  tiny_files.write_tokenizer(folder)
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
  server.folder, server.log = folder, []
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield server, root
  server.shutdown()
  server.server_close()


def _load(world, sources, changes=None):
  server, root = world
  environment = {
    **os.environ,
    "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
    "HF_HOME": str(root / "home"),
    "HF_HUB_OFFLINE": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GEMMASCOPE_CACHE": str(root / "cache"),
    "NO_PROXY": "127.0.0.1",
    "PYTHONPATH": os.pathsep.join(
      [str(pathlib.Path(gemma.__file__).parents[2]), *sys.path]
    ),
  }
  environment |= changes or {}
  environment.pop("HF_TOKEN", None)
  done = subprocess.run(
    [sys.executable, "-c", _CLIENT, json.dumps(sources)],
    env=environment,
    cwd=root,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  return [
    json.loads(line.removeprefix("RESULT "))
    for line in done.stdout.splitlines()
    if line.startswith("RESULT ")
  ]


def test_download_of_what_is_needed_then_offline(world):
  server, _ = world
  expected = huggingface.open_folder(server.folder).hash()
  tiny, gated, forbidden, missing, revision = _load(
    world,
    [
      ["org/tiny@v1", 1],
      ["org/gated", None],
      ["org/forbidden", None],
      ["org/missing", None],
      ["org/tiny@nowhere", None],
    ],
  )
  assert tiny == {
    "hash": expected,  # of files that were never downloaded, too
    "label": "org/tiny@v1",
    "params": ["embedder", "final_norm", "layer_0"],
    "words": [7, 9],
  }
  got = {file for command, _, file in server.log if command == "GET"}
  assert got == {
    "config.json",
    "model.safetensors.index.json",
    "model-00001-of-00003.safetensors",
    "tokenizer.json",
  }
  # After the first, all of one commit.
  assert {revision for _, revision, _ in server.log[2:]} == {COMMIT}

  for result in (gated, forbidden):
    assert "GatedModelError" in result["error"]
    assert "WeightsNotFoundError" in result["error"]
    assert "hf auth login" in result["message"]
    assert result["message"].startswith("weights not found: org/")
  assert "https://huggingface.co/org/gated" in gated["message"]
  assert missing["error"][0] == "WeightsNotFoundError"
  assert "no model org/missing" in missing["message"]
  assert "no revision 'nowhere'" in revision["message"]

  requests = len(server.log)
  again, more, never = _load(
    world,
    [["org/tiny@v1", 1], [f"org/tiny@{COMMIT}", 2], ["org/new", 1]],
    {"HF_HUB_OFFLINE": "1"},
  )
  assert again["hash"] == expected
  for result, name in ((more, "org/tiny"), (never, "org/new")):
    assert result["error"][0] == "WeightsNotFoundError"
    assert f"{name} is not (wholly) in the local cache" in result["message"]
  assert len(server.log) == requests


def test_without_a_network_there_is_no_wait(world):
  _load(world, [["org/tiny@v1", 1]])
  started = time.monotonic()
  known, unknown = _load(
    world,
    [["org/tiny@v1", 1], ["org/new", 1]],
    {"HF_ENDPOINT": "http://127.0.0.1:9"},  # nobody listens there
  )
  assert known["params"] == ["embedder", "final_norm", "layer_0"]
  assert unknown["error"][0] == "WeightsNotFoundError"
  assert "refused" in unknown["message"]
  assert time.monotonic() - started < 20  # the client's own retries take 24 s


def test_presets_are_aliases_of_ids():
  assert set(hub.ALIASES) == set(gemma.PRESETS)
  assert hub.parse("gemma-2-2b") == ("google/gemma-2-2b", None)
  assert hub.parse("gemma-3-1b@main") == ("google/gemma-3-1b-pt", "main")
  assert hub.parse("gemma-3-270m-it") == ("google/gemma-3-270m-it", None)
  assert hub.parse("a/b") == ("a/b", None)
  assert hub.parse("gemma-4") is None
  assert hub.parse("a/b/c") is None

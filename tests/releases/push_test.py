"""Uploads: a server that speaks the Hub's protocol, and a process of ours."""

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from gemmascope_jax.releases import folder, push

_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_CLIENT = """
import json, os, sys
from gemmascope_jax.releases import push
for token, root, repo, options in json.loads(sys.argv[1]):
  os.environ["HF_TOKEN"] = token
  try:
    found = push.push(root, repo, **options)["url"]
  except Exception as error:
    found = f"{type(error).__name__}: {error}"
  print("RESULT", json.dumps(found))
"""


class _Hub(http.server.BaseHTTPRequestHandler):
  """Repositories in memory: {name: {"private", "files"}}."""

  protocol_version = "HTTP/1.1"

  def log_message(self, *args):
    pass

  def do_GET(self):
    path = self.path.split("?")[0]
    repo = "/".join(path.split("/")[3:5])
    if repo not in self.server.repos:
      return self._answer({}, 404)
    files = self.server.repos[repo]["files"]
    if "/tree/" in path:
      listed = [
        {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
        for name, data in files.items()
      ]
      return self._answer(listed)
    names = [{"rfilename": name} for name in files]
    self._answer({"id": repo, "sha": _COMMIT, "siblings": names})

  def do_PUT(self):
    data = self._body()
    self.server.blobs[hashlib.sha256(data).hexdigest()] = data
    self._answer({})

  def do_POST(self):
    path, body = self.path.split("?")[0], self._body()
    if path == "/api/validate-yaml":
      return self._answer({"errors": [], "warnings": []})
    if self.headers.get("Authorization") != "Bearer hf_good":
      return self._answer({"error": "Invalid credentials"}, 401)
    if path == "/api/repos/create":
      asked = json.loads(body)
      name = f"{asked['organization']}/{asked['name']}"
      if name in self.server.repos:
        return self._answer({"url": name}, 409)
      self.server.repos[name] = {"asked": asked, "files": {}}
      return self._answer({"url": f"{self.server.url}/{name}", "id": name})
    if path.endswith("/objects/batch"):
      objects = json.loads(body)["objects"]
      for each in objects:
        if each["oid"] not in self.server.blobs:
          href = f"{self.server.url}/upload"
          each["actions"] = {"upload": {"href": href, "header": {}}}
      return self._answer({"objects": objects, "transfer": "basic"})
    name = "/".join(path.split("/")[3:5])
    repo = self.server.repos[name]
    if "/preupload/" in path:
      modes = [
        {
          "path": each["path"],
          "uploadMode": "lfs" if each["path"].endswith(".npz") else "regular",
          "shouldIgnore": False,
          "oid": None,
        }
        for each in json.loads(body)["files"]
      ]
      return self._answer({"files": modes})
    assert "/commit/" in path, path
    for line in body.splitlines():
      entry = json.loads(line)
      value = entry["value"]
      if entry["key"] == "file":
        repo["files"][value["path"]] = base64.b64decode(value["content"])
      elif entry["key"] == "lfsFile":
        repo["files"][value["path"]] = self.server.blobs[value["oid"]]
      elif entry["key"] == "deletedFile":
        del repo["files"][value["path"]]
    url = f"{self.server.url}/{name}/commit/{_COMMIT}"
    self._answer({"commitUrl": url, "commitOid": _COMMIT})

  def _body(self):
    if "chunked" in self.headers.get("Transfer-Encoding", ""):
      data = b""
      while size := int(self.rfile.readline(), 16):
        data += self.rfile.read(size)
        self.rfile.readline()
      self.rfile.readline()
      return data
    return self.rfile.read(int(self.headers.get("Content-Length", 0)))

  def _answer(self, value, status=200):
    data = json.dumps(value).encode()
    self.send_response(status)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    self.wfile.write(data)


@pytest.fixture(scope="module")
def hub():
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
  server.repos, server.blobs = {}, {}
  server.url = f"http://127.0.0.1:{server.server_address[1]}"
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield server
  server.shutdown()


def _release(root, l0, licence=None):
  where = root / f"layer_1/width_4k/average_l0_{l0}"
  where.mkdir(parents=True)
  (where / "params.npz").write_bytes(bytes(range(l0)) * 1000)
  (where / folder.CARD).write_text("{}")
  (root / folder.README).write_text("---\nlibrary_name: x\n---\n# SAEs\n")
  saes = [{"folder": where.relative_to(root).as_posix()}]
  about = {"saes": saes, "model": {}, "weights_format": "x"}
  folder.finish(root, about | {"licence": licence})
  return root


def test_a_release_goes_to_a_repository_of_the_hub(hub, tmp_path):
  mine = _release(tmp_path / "mine", 40)
  moved = _release(tmp_path / "moved", 50, "cc-by-4.0")
  hub.repos["user/old"] = {
    "asked": {},
    "files": {
      "figure.png": b"theirs",
      "layer_1/width_4k/average_l0_40/params.npz": b"stale",
    },
  }
  calls = [
    ("hf_bad", mine, "user/new", {}),
    ("hf_good", mine, "user/dry", {"dry_run": True}),
    ("hf_good", mine, "user/new", {}),
    ("hf_good", mine, "user/new", {}),
    ("hf_good", moved, "user/public", {"public": True}),
    ("hf_good", moved, "user/old", {}),
    ("hf_good", mine, "user/x", {"endpoint": "http://127.0.0.1:9"}),
  ]
  env = os.environ | {
    "HF_ENDPOINT": hub.url,
    "HF_HOME": str(tmp_path / "home"),
    "HF_HUB_OFFLINE": "0",
    "HF_HUB_DISABLE_XET": "1",  # a protocol of its own
    "HF_HUB_DISABLE_TELEMETRY": "1",
  }
  asked = json.dumps([(token, str(p), *rest) for token, p, *rest in calls])
  done = subprocess.run(
    [sys.executable, "-c", _CLIENT, asked],
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  found = [
    json.loads(line.removeprefix("RESULT "))
    for line in done.stdout.splitlines()
    if line.startswith("RESULT ")
  ]
  assert len(found) == len(calls), done.stderr
  assert found[0].startswith("PermissionError: the Hub does not let you write")
  assert found[1] is None and "user/dry" not in hub.repos
  assert _COMMIT in found[2] and _COMMIT in found[3]
  assert found[6].startswith("ConnectionError: the Hub can't be reached")
  there = hub.repos["user/new"]
  assert there["asked"]["visibility"] == "private"
  on_disk = {
    path.relative_to(mine).as_posix(): path.read_bytes()
    for path in mine.rglob("*")
    if path.is_file()
  }
  assert there["files"] == on_disk
  assert hub.repos["user/public"]["asked"]["visibility"] == "public"
  old = hub.repos["user/old"]["files"]
  assert old["figure.png"] == b"theirs"
  assert not [name for name in old if "average_l0_40" in name]


def test_what_can_not_go_is_refused(tmp_path):
  root = _release(tmp_path / "r", 3)
  with pytest.raises(ValueError, match="expected USER/NAME"):
    push.push(root, "nobody")
  with pytest.raises(ValueError, match="--public without a licence"):
    push.push(root, "user/name", public=True, dry_run=True)
  (root / folder.README).write_text("changed")
  with pytest.raises(ValueError, match=r"not whole.*README.md.*was changed"):
    push.push(root, "user/name", dry_run=True)

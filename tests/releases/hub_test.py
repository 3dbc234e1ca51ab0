"""SAEs on the Hub: a server that speaks its protocol, and its cache alone.

The server and its files are here; the client is huggingface_hub, in a process
of its own, as it reads the Hub's address when it is imported.
"""

import dataclasses
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import urllib.parse

import numpy as np
import pytest

from gemmascope_jax import releases
from gemmascope_jax.releases import hub, identity
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig

_OLD, _NEW = "1" * 40, "2" * 40
_RES = "google/gemma-scope-2b-pt-res"
_MINE = "somebody/saes"
_CLIENT = """
import json, sys, urllib.request
import gemmascope_jax as gs
for path, member in json.loads(sys.argv[1]):
  if path == "close":
    urllib.request.urlopen(f"{sys.argv[2]}/close").read()
    continue
  try:
    sae = gs.sae.load(path, member)
    about = sae.config.details()["hub"] | {
      "site": sae.config.site, "b": float(sae.params.b_dec[0])}
  except Exception as error:
    about = f"{type(error).__name__}: {error}"
  print("RESULT", json.dumps(about))
"""


class _Hub(http.server.BaseHTTPRequestHandler):
  """{repository: {revision: {name: bytes}}}."""

  protocol_version = "HTTP/1.1"

  def log_message(self, *args):
    pass

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    parts = urllib.parse.unquote(self.path.split("?")[0]).split("/")[1:]
    if parts == ["close"]:
      self._answer(b"")
      self.server.closed = True
      self.server.shutdown()
      self.server.server_close()
    if self.server.closed:  # connections that are kept alive too
      self.close_connection = True
      return None
    api = parts[0] == "api"
    if api:
      parts = parts[2:]
    repo, rest = "/".join(parts[:2]), parts[2:]
    if repo not in self.server.repos:
      return self._answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
    revisions = self.server.repos[repo]
    kind, wanted, path = (
      (*rest[:2], "/".join(rest[2:]))[:3] if rest else ("",) * 3
    )
    wanted = {"main": _NEW, "": _NEW, "v1": _OLD}.get(wanted, wanted)
    if wanted not in revisions:
      return self._answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
    files = revisions[wanted]
    if kind == "resolve":
      self.server.fetched.append(f"{repo}/{path}")
      data = files.get(path)
      if data is None:
        return self._answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
      etag = f'"{hashlib.sha256(data).hexdigest()}"'
      return self._answer(data, 200, {"ETag": etag, "X-Repo-Commit": wanted})
    if kind == "tree":
      return self._tree(files, path)
    names = [{"rfilename": name} for name in files]
    about = {"id": repo, "sha": wanted, "siblings": names}
    return self._answer(json.dumps(about).encode())

  def _tree(self, files, path):
    below = f"{path}/" if path else ""
    query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
    recursive = query.get("recursive", ["false"])[0].lower() == "true"
    inside = [name for name in files if name.startswith(below)]
    if path and not inside:
      return self._answer(b"{}", 404, {"X-Error-Code": "EntryNotFound"})
    listed = []
    for name in inside:
      rest = name.removeprefix(below)
      if recursive or "/" not in rest:
        size = len(files[name])
        listed.append(
          {"type": "file", "path": name, "size": size, "oid": "0" * 40}
        )
      else:
        folder = below + rest.split("/")[0]
        one = {"type": "directory", "path": folder, "oid": "0" * 40}
        if one not in listed:
          listed.append(one)
    return self._answer(json.dumps(listed).encode())

  def _answer(self, data, status=200, headers=None):
    self.send_response(status)
    self.send_header("Content-Length", str(len(data)))
    for name, value in (headers or {}).items():
      self.send_header(name, value)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data)


def _sae(mark, site=None, width=6, target=None) -> SAE:
  zeros = lambda *shape: np.zeros(shape, np.float32)
  return SAE(
    Params(
      w_enc=zeros(width, 3),
      b_enc=zeros(3),
      w_dec=zeros(3, width),
      b_dec=np.full(width, mark, np.float32),
      threshold=zeros(3),
    ),
    SAEConfig(site=site, target_site=target, model="gemma-tiny"),
  )


def _files(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


@pytest.fixture(scope="module", name="repos")
def _repos(tmp_path_factory):
  root = tmp_path_factory.mktemp("repos")
  res, mine = root / "res", root / "mine"
  for l0 in (38, 71, 139):
    folder = res / f"layer_20/width_16k/average_l0_{l0}"
    releases.save(_sae(l0, width=2304), folder)
    (folder / identity.CARD).unlink()
  (res / "README.md").write_text("no SAE")
  releases.save(_sae(1, "res.4"), mine / "sub/one", "saelens")
  (mine / "sub/one/examples.safetensors").write_bytes(b"large")
  (mine / "sub/one/more").mkdir()
  (mine / "sub/one/more/params.npz").write_bytes(b"of another SAE")
  for layer in (0, 1):
    transcoder = _sae(10 + layer, f"mlp_in.{layer}", target=f"mlp.{layer}")
    releases.save(transcoder, mine / "clts", "circuit_tracer")
  old = _files(mine)
  releases.save(_sae(2, "res.4"), mine / "sub/one", "saelens")
  return {
    _RES: {_NEW: _files(res)},
    _MINE: {_OLD: old, _NEW: _files(mine)},
  }


_PLACE = f"{_RES}/layer_20/width_16k"
_ASKED = [
  (f"{_PLACE}/average_l0_38", None),
  (f"{_PLACE}/canonical", None),
  (f"{_PLACE}/nearest_l0_500", None),
  (f"hf://{_MINE}/sub/one", None),
  (f"hf://{_MINE}@v1/sub/one", None),
  (f"hf://{_MINE}/clts", 1),
  # What is not there.
  (f"{_RES}/layer_21/width_16k/canonical", None),
  (f"{_RES}/layer_20/width_16k/average_l0_99", None),
  (f"hf://{_MINE}@v9/sub/one", None),
  ("hf://somebody/nothing/sub", None),
  ("close", None),
  # Without the Hub.
  (f"hf://{_MINE}@{_OLD}/sub/one", None),
  (f"hf://{_MINE}/sub/one", None),
  (f"{_PLACE}/canonical", None),
  (f"{_PLACE}/nearest_l0_130", None),
  (f"{_RES}/layer_3/width_16k/average_l0_59", None),
  (f"hf://{_MINE}/layer_1/width_4k/canonical", None),
]


@pytest.fixture(scope="module", name="answers")
def _answers(repos, tmp_path_factory):
  """({(address, whether the Hub was there): answer}, files fetched)."""
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
  server.repos, server.closed, server.fetched = repos, False, []
  threading.Thread(target=server.serve_forever, daemon=True).start()
  url = f"http://127.0.0.1:{server.server_port}"
  env = os.environ | {
    "HF_ENDPOINT": url,
    "HF_HOME": str(tmp_path_factory.mktemp("home")),
    "HF_HUB_DISABLE_XET": "1",
    "NO_PROXY": "127.0.0.1",
    "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
  }
  for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
    env.pop(name, None)
  command = [sys.executable, "-c", _CLIENT, json.dumps(_ASKED), url]
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  lines = [line for line in done.stdout.splitlines() if "RESULT" in line]
  assert len(lines) == len(_ASKED) - 1, done.stderr[-3000:]
  found, there, lines = {}, True, iter(lines)
  for address, _ in _ASKED:
    if address == "close":
      there = False
    else:
      said = json.loads(next(lines).removeprefix("RESULT "))
      found[address, there] = said
  return found, server.fetched


def test_addresses_give_the_sae_of_one_commit(answers):
  found, _ = answers
  place = "layer_20/width_16k"
  expected = {
    f"{_PLACE}/average_l0_38": (_RES, f"{place}/average_l0_38", 38, _NEW),
    f"{_PLACE}/canonical": (_RES, f"{place}/average_l0_71", 71, _NEW),
    f"{_PLACE}/nearest_l0_500": (_RES, f"{place}/average_l0_139", 139, _NEW),
    f"hf://{_MINE}/sub/one": (_MINE, "sub/one", 2, _NEW),
    f"hf://{_MINE}@v1/sub/one": (_MINE, "sub/one", 1, _OLD),
    f"hf://{_MINE}/clts": (_MINE, "clts", 11, _NEW),
  }
  sites = {_RES: "res.20", "sub/one": "res.4", "clts": "mlp_in.1"}
  for address, (repo, folder, mark, commit) in expected.items():
    assert found[address, True] == {
      "repo": repo,
      "folder": folder,
      "revision": commit,
      "site": sites.get(repo) or sites[folder],
      "b": mark,
    }


def test_only_what_is_read_is_fetched(answers):
  _, fetched = answers
  assert f"{_MINE}/sub/one/sae_weights.safetensors" in fetched
  for name in ("examples.safetensors", "more/params.npz"):
    assert f"{_MINE}/sub/one/{name}" not in fetched
  assert f"{_RES}/README.md" not in fetched
  assert f"{_MINE}/clts/layer_1.safetensors" in fetched
  assert f"{_MINE}/clts/layer_0.safetensors" not in fetched


def test_what_is_not_on_the_hub_is_said(answers):
  found, _ = answers
  expected = {
    f"{_RES}/layer_21/width_16k/canonical": "has no layer_21/width_16k/average",
    f"{_RES}/layer_20/width_16k/average_l0_99": "there is no SAE in this folder",
    f"hf://{_MINE}@v9/sub/one": f"{_MINE} has no revision 'v9'",
    "hf://somebody/nothing/sub": "the Hub has no model somebody/nothing",
  }
  for address, says in expected.items():
    answer = found[address, True]
    assert answer.startswith("ReleaseNotFoundError") and says in answer
  held = found[f"{_RES}/layer_21/width_16k/canonical", True]
  assert "it has 4k on the embedding; 16k on layers 0..25" in held


def test_the_cache_is_enough(answers):
  found, _ = answers
  for address, online in (
    (f"hf://{_MINE}@{_OLD}/sub/one", f"hf://{_MINE}@v1/sub/one"),
    (f"hf://{_MINE}/sub/one", f"hf://{_MINE}/sub/one"),
    (f"{_PLACE}/canonical", f"{_PLACE}/canonical"),
    (f"{_PLACE}/nearest_l0_130", f"{_PLACE}/nearest_l0_500"),
  ):
    assert found[address, False] == found[online, True], address
  answer = found[f"{_RES}/layer_3/width_16k/average_l0_59", False]
  assert "is not in the Hub's cache, and the Hub did not give it" in answer
  answer = found[f"hf://{_MINE}/layer_1/width_4k/canonical", False]
  assert "only the Hub can say, and it cannot be reached" in answer


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (f"{_RES}/a/b", hub.Address(_RES, "a/b")),
    (f"{_RES}@v1/a/", hub.Address(_RES, "a", "v1")),
    (_RES, hub.Address(_RES, "")),
    ("hf://x/y", hub.Address("x/y", "")),
    ("hf://x/y@abc/z", hub.Address("x/y", "z", "abc")),
    ("runs/mine/train", None),  # may be a local path
    ("/abs/path", None),
    ("..", None),
  ],
)
def test_addresses(text, expected):
  found = hub.parse(text)
  assert found == expected
  if found is not None:
    assert hub.parse(f"hf://{found}") == found


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("hf://x", "no address on the Hub: expected hf://OWNER/REPOSITORY/FOLDER"),
    ("hf://x/y/../z", "leads out of the repository"),
    (f"{_RES}/../../etc", "leads out of the repository"),
    ("hf://x/y/./z", "leads out of the repository"),
  ],
)
def test_what_is_no_address_is_said(text, says):
  with pytest.raises(ValueError, match=says):
    hub.parse(text)


def test_a_copy_of_a_tree_is_chosen_from_as_the_hub_is(tmp_path):
  import gemmascope_jax as gs

  place = tmp_path / "gemma-scope-9b-pt-att/layer_23/width_131k"
  for l0 in (19, 36, 66, 134):
    sae = _sae(l0)
    sae = dataclasses.replace(sae, config=SAEConfig(site="att.23"))
    releases.save(sae, place / f"average_l0_{l0}")
  # Equally near: here the smaller one is marked.
  assert gs.sae.load(place / "canonical").params.b_dec[0] == 66
  assert gs.sae.load(place / "nearest_l0_100").params.b_dec[0] == 134
  assert gs.sae.load(place / "nearest_l0_30").params.b_dec[0] == 36
  plain = tmp_path / "mine/layer_1"
  (place).rename(tmp_path / "moved")
  plain.mkdir(parents=True)
  (tmp_path / "moved").rename(plain / "width_4k")
  assert gs.sae.load(plain / "width_4k/canonical").params.b_dec[0] == 134
  with pytest.raises(FileNotFoundError, match="below it, such as '.*l0_134'"):
    gs.sae.load(tmp_path / "mine")
  (plain / "width_8k").mkdir()
  with pytest.raises(FileNotFoundError, match="no average_l0_N in .*width_8k"):
    gs.sae.load(plain / "width_8k/canonical")

"""The server of one folder: what it answers, and to whom."""

import http.client
import json
import threading

import numpy as np
import pytest

from gemmascope_jax.dashboards import live, site
from tests.dashboards import made


def _read(text):
  """Latent i fires by i on each letter "a", latent 69 on everything."""
  values = np.zeros((len(text), 70), np.float32)
  for place, letter in enumerate(text):
    if letter == "a":
      values[place] = np.arange(70) / 10
    values[place, 69] = 9.0
  return list(text), values


@pytest.fixture
def server(tmp_path):
  site.write(tmp_path / "pages", made.SAE, made.latents()[:10])
  with live.start(tmp_path / "pages", _read) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()


def _ask(server, method, path, body=None, **headers):
  there = http.client.HTTPConnection("127.0.0.1", server.server_port)
  headers = {"Content-Type": "application/json"} | {
    name.replace("_", "-"): value for name, value in headers.items()
  }
  there.request(method, path, body, headers)
  answer = there.getresponse()
  return answer.status, answer.read()


def test_latents_that_are_shown_and_fire_nearest_their_largest_first(server):
  body = json.dumps({"text": "xay"})
  status, content = _ask(server, "POST", "/live", body)
  found = json.loads(content)
  assert status == 200 and found["pieces"] == ["x", "a", "y"]
  # All have 4 for their largest but 5, which has 8; 69 is not shown.
  assert [each["index"] for each in found["latents"]] == [
    9,
    8,
    7,
    6,
    4,
    3,
    5,
    2,
    1,
  ]
  assert found["latents"][0]["values"] == pytest.approx([0, 0.9, 0])
  assert found["fired"] == 9


def test_pages_know_that_a_model_answers(server):
  status, content = _ask(server, "GET", "/data/index.js")
  assert status == 200 and b'"live":true' in content
  status, content = _ask(server, "GET", "/index.html")
  assert status == 200 and b"page.js" in content


@pytest.mark.parametrize(
  ("body", "says"),
  [
    ('{"text": "  "}', "empty"),
    ('{"text": 7}', "expected a string"),
    ("{", "Expecting property name"),
    (json.dumps({"text": "a" * 2_001}), "2,001 characters"),
    ('{"text": "a\\ud800"}', "half of a character"),
    (json.dumps({"text": "a" * 20_000}), "bytes"),
  ],
)
def test_bad_sentences_are_refused(server, body, says):
  status, content = _ask(server, "POST", "/live", body)
  assert status == 400 and says in json.loads(content)["error"]


def test_other_names_and_origins_are_refused(server):
  body = json.dumps({"text": "a"})
  status, _ = _ask(server, "POST", "/live", body, Host="evil.example:80")
  assert status == 403
  status, _ = _ask(server, "GET", "/index.html", Host="evil.example:80")
  assert status == 403
  # A form of another page can post text, but not JSON without being asked.
  status, _ = _ask(server, "POST", "/live", body, Content_Type="text/plain")
  assert status == 404
  status, _ = _ask(server, "GET", "/../made.py")
  assert status == 404


def test_a_port_that_is_taken_is_said(server, tmp_path):
  with pytest.raises(OSError, match="name another one"):
    live.start(tmp_path / "pages", _read, server.server_port)

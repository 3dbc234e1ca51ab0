"""Chat explainer, simulator and endpoint against a real server on loopback."""

import collections
import contextlib
import http.server
import json
import threading
import time

import numpy as np
import pytest

from experiments import _binary
from gemmascope_jax.studies.interpretability import chat_endpoint
from gemmascope_jax.studies.interpretability.chat import (
  ChatExplainer,
  ChatSimulator,
  Prices,
  cost,
)
from gemmascope_jax.studies.interpretability.chat_endpoint import (
  ChatEndpoint,
  EndpointError,
)
from gemmascope_jax.studies.interpretability.outcomes import Failure
from tests.studies.interpretability import planted

ASK = [{"role": "user", "content": "hello"}]


def reply(content, **choice):
  """A response of the chat API."""
  message = {"role": "assistant", "content": content}
  return {
    "choices": [{"message": message, "finish_reason": "stop", **choice}],
    "usage": {"prompt_tokens": 11, "completion_tokens": 3},
  }


@contextlib.contextmanager
def serving(answer):
  """A server whose `answer(body, number)` gives (status, headers, body)."""
  seen = []
  lock = threading.Lock()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      size = int(self.headers["Content-Length"])
      body = json.loads(self.rfile.read(size))
      with lock:
        number = len(seen)
        seen.append((self.path, dict(self.headers), body, time.monotonic()))
      status, headers, content = answer(body, number)
      if not isinstance(content, bytes):
        content = json.dumps(content).encode()
      with contextlib.suppress(OSError):  # a client that waits no more
        self.send_response(status)
        for name, value in headers.items():
          self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_args):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever, args=(0.05,))
  thread.start()
  try:
    yield f"http://127.0.0.1:{server.server_port}/v1", seen
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def _endpoint(url, **change):
  fast = dict(requests_per_minute=1e6, pause=0.01, timeout=5, retries=3)
  return ChatEndpoint(url, "a-model", **fast | change)


def test_a_request_carries_model_messages_and_key(monkeypatch):
  monkeypatch.setenv("SOME_KEY", "secret")
  with serving(lambda body, n: (200, {}, reply("hi"))) as (url, seen):
    endpoint = _endpoint(url, key_variable="SOME_KEY")
    assert endpoint.ask(ASK) == "hi"
    monkeypatch.delenv("SOME_KEY")
    assert endpoint.ask(ASK) == "hi"
  path, headers, body, _ = seen[0]
  assert path == "/v1/chat/completions"
  assert headers["Authorization"] == "Bearer secret"
  assert "Authorization" not in seen[1][1]
  assert body["model"] == "a-model" and body["messages"] == ASK
  assert body["temperature"] == 0 and body["max_tokens"] == 256
  assert endpoint.usage == {
    "requests": 2, "cached": 0, "input_tokens": 22, "output_tokens": 6
  }  # fmt: skip
  assert "secret" not in json.dumps(endpoint.describe())


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(status):
  def answer(body, number):
    return (status, {}, {}) if number < 2 else (200, {}, reply("at last"))

  with serving(answer) as (url, seen):
    assert _endpoint(url, pause=0.05).ask(ASK) == "at last"
  times = [at for *_, at in seen]
  first, second = np.diff(times)
  assert 0.05 <= first < second  # it waits longer each time


def test_it_waits_as_long_as_the_server_asks():
  def answer(body, number):
    if number == 0:
      return 429, {"Retry-After": "0.4"}, {}
    return 200, {}, reply("at last")

  with serving(answer) as (url, seen):
    assert _endpoint(url).ask(ASK) == "at last"
  assert seen[1][3] - seen[0][3] >= 0.4


def test_what_never_works_is_a_transport_failure():
  with serving(lambda body, n: (503, {}, b"overloaded")) as (url, seen):
    found = _endpoint(url).ask(ASK)
  assert found.kind == "transport" and len(seen) == 4
  assert "4 attempts" in found.detail and "503" in found.detail
  with serving(lambda body, n: (400, {}, b"too long")) as (url, seen):
    found = _endpoint(url).ask(ASK)
  assert found.kind == "transport" and "too long" in found.detail
  assert len(seen) == 1  # asking again would not help
  found = _endpoint(url, retries=0, timeout=1).ask(ASK)  # nobody there
  assert found.kind == "transport"


def test_a_slow_answer_is_given_up():
  def answer(body, number):
    if number == 0:
      time.sleep(1.0)
    return 200, {}, reply(f"answer {number}")

  with serving(answer) as (url, _):
    assert _endpoint(url, timeout=0.3).ask(ASK) == "answer 1"


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_a_wrong_key_or_address_ends_it(status):
  headers = {"Location": "http://127.0.0.1:1/"} if status == 302 else {}
  with serving(lambda body, n: (status, headers, b"no")) as (url, seen):
    with pytest.raises(EndpointError, match=f"HTTP {status}.*a-model"):
      _endpoint(url, concurrency=2).ask_all([ASK] * 20)
  assert len(seen) < 20
  assert issubclass(EndpointError, _binary._EXPLAINED)  # no traceback


@pytest.mark.parametrize(
  ("response", "kind"),
  [
    (reply(None), "parse"),
    (reply([{"text": "x"}]), "parse"),
    ({"choices": []}, "parse"),
    ({"error": "what"}, "parse"),
    (reply("", finish_reason="content_filter"), "refusal"),
    (
      {"choices": [{"message": {"content": None, "refusal": "no"}}]},
      "refusal",
    ),
    (b"<html>not JSON</html>", "transport"),
    (b"[1]", "transport"),
  ],
)
def test_no_answer_is_a_failure_of_its_kind(response, kind):
  with serving(lambda body, n: (200, {}, response)) as (url, _):
    found = _endpoint(url, retries=1).ask(ASK)
  assert isinstance(found, Failure) and found.kind == kind


def test_good_answers_are_kept_and_bad_ones_are_not(tmp_path, monkeypatch):
  monkeypatch.setenv("OPENAI_API_KEY", "secret")

  def answer(body, number):
    good = number > 0
    return 200, {}, reply(f"answer {number}") if good else {"error": "what"}

  with serving(answer) as (url, seen):
    make = lambda: _endpoint(url, cache=tmp_path, retries=0)
    assert make().ask(ASK).kind == "parse"
    assert make().ask(ASK) == "answer 1"
    again = make()
    assert again.ask(ASK) == "answer 1"
    assert again.usage["cached"] == 1 and again.usage["requests"] == 0
    assert len(seen) == 2
    (path,) = tmp_path.iterdir()
    assert "secret" not in path.read_text()
    path.write_text("{half")
    assert make().ask(ASK) == "answer 2"
    other = [{"role": "user", "content": "other"}]
    assert make().ask(other) == "answer 3"


def test_answers_come_in_order_and_few_at_a_time():
  running, most = collections.Counter(), []
  lock = threading.Lock()

  def answer(body, number):
    with lock:
      running["now"] += 1
      most.append(running["now"])
    time.sleep(0.03 if int(body["messages"][0]["content"]) % 2 else 0.0)
    with lock:
      running["now"] -= 1
    return 200, {}, reply(body["messages"][0]["content"])

  with serving(answer) as (url, _):
    questions = [[{"role": "user", "content": str(i)}] for i in range(20)]
    found = _endpoint(url, concurrency=3).ask_all(questions)
  assert found == [str(i) for i in range(20)]
  assert 1 < max(most) <= 3


def test_requests_keep_below_the_rate():
  with serving(lambda body, n: (200, {}, reply("x"))) as (url, seen):
    endpoint = _endpoint(url, requests_per_minute=1200, concurrency=8)
    endpoint.ask_all([ASK] * 9)
  times = sorted(at for *_, at in seen)
  assert times[-1] - times[0] >= 8 * 0.05 * 0.9


def test_settings_that_make_no_sense_are_refused():
  with pytest.raises(ValueError, match="base_url 'localhost'"):
    ChatEndpoint("localhost", "m")
  with pytest.raises(ValueError, match="requests_per_minute 0"):
    ChatEndpoint("http://localhost", "m", requests_per_minute=0)
  assert chat_endpoint._retry_after("soon") == 0
  assert chat_endpoint._retry_after("1e9") == 60


def test_explainer_and_simulator_read_what_a_model_says():
  """A server that explains by the loudest word, and knows that word's rule."""

  def answer(body, number):
    text = body["messages"][1]["content"]
    if "Passage:" in text:
      return 200, {}, reply("the word w7")
    lines = text.split("Tokens:\n")[1].split("\n")
    fires = {line.split(" ")[0]: 10 for line in lines if '"w7 "' in line}
    if number % 4 == 0:
      return 200, {}, reply("I'm sorry, I can't help with that.")
    return 200, {}, reply(json.dumps(fires))

  sample = planted.sample(0, "word")
  tokenizer = planted.Tokenizer()
  with serving(answer) as (url, seen):
    endpoint = _endpoint(url, concurrency=1)
    explainer = ChatExplainer(endpoint, tokenizer)
    simulator = ChatSimulator(endpoint, tokenizer)
    assert explainer.explain([sample.shown]) == ["the word w7"]
    held_out = sample.held_out
    found = simulator.simulate("the word w7", held_out.tokens, held_out.keep)
  refused = [i for i, each in enumerate(found) if isinstance(each, Failure)]
  assert refused == [3, 7, 11]  # the first request was the explanation
  for i, each in enumerate(found):
    if i not in refused:
      right = (held_out.tokens[i] == planted.WORD) & held_out.keep[i]
      np.testing.assert_array_equal(each, 10.0 * right)
  sent = json.dumps([body for _, _, body, _ in seen[1:]])
  assert "3.0" not in sent  # no true activation reaches the simulator
  assert simulator.usage["requests"] == 13


def test_the_cost_is_known_before():
  samples = [planted.sample(i, "word") for i in range(3)]
  endpoint = _endpoint("http://localhost", max_tokens=100)
  tokenizer = planted.Tokenizer()
  prices = Prices(input=1.0, output=10.0)
  found = ChatSimulator(endpoint, tokenizer, prices).cost(samples)
  assert found.requests == 3 * 12 and found.output_tokens == 3_600
  expected = (found.input_tokens * 1.0 + 3_600 * 10.0) / 1e6
  assert found.dollars == pytest.approx(expected)
  assert found.input_tokens > 3 * 12 * 23  # at least a token a token
  total = found + ChatExplainer(endpoint, tokenizer, prices).cost(samples)
  assert total.requests == 39 and total.dollars > found.dollars
  assert cost([ASK], 5, None).dollars is None
  assert (found + cost([ASK], 5, None)).dollars is None

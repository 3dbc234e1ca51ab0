"""A chat model behind an OpenAI-compatible HTTP endpoint.

Requests are retried with growing pauses where that can help, kept below a rate,
and every good answer is kept on disk under the hash of its request, so that
nothing is paid for twice. The key comes from an environment variable and is
written nowhere.
"""

from __future__ import annotations

import concurrent.futures
import email.utils
import http.client
import json
import os
import pathlib
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from gemmascope_jax import artifacts
from gemmascope_jax.studies.interpretability import prompts
from gemmascope_jax.studies.interpretability.outcomes import (
  PARSE,
  REFUSAL,
  TRANSPORT,
  Failure,
)

Messages = list[dict[str, str]]

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_HOPELESS = {401, 403, 404}  # key, rights or address: the same for all requests
_MOST_BYTES = 16 << 20
_LONGEST_PAUSE = 60.0


class EndpointError(ConnectionError):
  """The endpoint can't be used at all: wrong key, model or address."""


class ChatEndpoint:
  """Asks a chat model; safe to use from several threads.

  Args:
    base_url: such as "https://api.openai.com/v1": requests go to
      /chat/completions below it.
    model: the name that it knows.
    cache: folder for answers; None: they are not kept.
    requests_per_minute: at most, retries included.
    concurrency: requests at a time.
    retries: after the first attempt.
    pause: seconds before the first retry; doubles with each.
    timeout: seconds that an answer may take.
    max_tokens: of an answer.
    temperature: 0: the likeliest answer.
    key_variable: environment variable with the key; an endpoint of your own
      may need none, so it may be unset.
  """

  def __init__(
    self,
    base_url: str,
    model: str,
    *,
    cache: str | os.PathLike | None = None,
    requests_per_minute: float = 60.0,
    concurrency: int = 4,
    retries: int = 5,
    pause: float = 1.0,
    timeout: float = 60.0,
    max_tokens: int = 256,
    temperature: float = 0.0,
    key_variable: str = "OPENAI_API_KEY",
  ):
    if not base_url.startswith(("https://", "http://")):
      raise ValueError(
        f"base_url {base_url!r}: expected http:// or https:// and a host"
      )
    if requests_per_minute <= 0 or concurrency < 1 or retries < 0:
      raise ValueError(
        f"requests_per_minute {requests_per_minute}, concurrency"
        f" {concurrency}, retries {retries}: expected more than 0, at least 1"
        " and at least 0"
      )
    self.model, self.max_tokens = model, max_tokens
    self._url = base_url.rstrip("/") + "/chat/completions"
    self._cache = None if cache is None else pathlib.Path(cache)
    self._gap = 60.0 / requests_per_minute
    self._concurrency, self._retries = concurrency, retries
    self._pause, self._timeout = pause, timeout
    self._temperature, self._key_variable = temperature, key_variable
    self._lock = threading.Lock()
    self._next = 0.0
    self.usage = dict.fromkeys(
      ("requests", "cached", "input_tokens", "output_tokens"), 0
    )

  def describe(self) -> dict[str, Any]:
    """What determines the answers, JSON-ready; no key."""
    return {
      "url": self._url,
      "model": self.model,
      "max_tokens": self.max_tokens,
      "temperature": self._temperature,
    }

  def ask_all(self, questions: Sequence[Messages]) -> list[str | Failure]:
    """The answers' texts, in order, a failure where there is none.

    Raises:
      EndpointError: no request can succeed; says why.
    """
    with concurrent.futures.ThreadPoolExecutor(self._concurrency) as pool:
      futures = [pool.submit(self.ask, messages) for messages in questions]
      try:
        return [future.result() for future in futures]
      except BaseException:
        for future in futures:
          future.cancel()
        raise

  def ask(self, messages: Messages) -> str | Failure:
    """One answer's text; see `ask_all`."""
    body = {
      "model": self.model,
      "messages": messages,
      "max_tokens": self.max_tokens,
      "temperature": self._temperature,
    }
    path = None
    if self._cache is not None:
      key = artifacts.fingerprint([self._url, body])
      path = self._cache / f"answer_{key}.json"
      kept = _read_kept(path)
      if kept is not None:
        self._count(cached=1)
        return _text(kept)
    response = self._send(body)
    if isinstance(response, Failure):
      return response
    usage = response.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    self._count(
      input_tokens=_whole(usage.get("prompt_tokens")),
      output_tokens=_whole(usage.get("completion_tokens")),
    )
    text = _text(response)
    # What is no response of the API may be one the next time.
    if path is not None and not (
      isinstance(text, Failure) and text.kind == PARSE
    ):
      artifacts.write_json(path, response)
    return text

  def _send(self, body: dict[str, Any]) -> dict[str, Any] | Failure:
    """The response as JSON, after as many attempts as it takes."""
    data = json.dumps(body).encode()
    trouble = ""
    for attempt in range(self._retries + 1):
      self._wait_for_turn()
      self._count(requests=1)
      pause = min(self._pause * 2**attempt, _LONGEST_PAUSE)
      try:
        return self._once(data)
      except urllib.error.HTTPError as error:
        trouble = f"HTTP {error.code} {error.reason}: {_excerpt(error)}"
        if error.code in _HOPELESS or error.code < 400:
          raise EndpointError(
            f"{self._url} answered {trouble}; check the address, the model"
            f" {self.model!r} and the key in ${self._key_variable}"
          ) from None
        if error.code not in _AGAIN:
          return Failure(TRANSPORT, trouble)
        pause = max(pause, _retry_after(error.headers.get("Retry-After")))
      except (OSError, http.client.HTTPException, ValueError) as error:
        trouble = f"{type(error).__name__}: {error}"
      if attempt < self._retries:
        time.sleep(pause * random.uniform(1.0, 1.25))
    return Failure(
      TRANSPORT, f"{self._retries + 1} attempts, the last one: {trouble}"
    )

  def _once(self, data: bytes) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    key = os.environ.get(self._key_variable)
    if key:
      headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(self._url, data, headers)
    with _OPENER.open(request, timeout=self._timeout) as response:
      content = response.read(_MOST_BYTES)
    found = json.loads(content)
    if not isinstance(found, dict):
      raise ValueError(f"no JSON object: {content[:80]!r}")
    return found

  def _wait_for_turn(self) -> None:
    with self._lock:
      now = time.monotonic()
      turn = max(now, self._next)
      self._next = turn + self._gap
    time.sleep(turn - now)

  def _count(self, **more: int) -> None:
    with self._lock:
      for name, number in more.items():
        self.usage[name] += number


class _NoRedirects(urllib.request.HTTPRedirectHandler):
  """A redirect would take the key to another host."""

  def redirect_request(self, *_args):
    """None: the redirect is an `HTTPError`."""
    return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def _text(response: dict[str, Any]) -> str | Failure:
  """The answer in a response of the chat API."""
  try:
    choice = response["choices"][0]
    message = choice["message"]
    content = message["content"]
    declined = message.get("refusal")
  except (KeyError, IndexError, TypeError, AttributeError):
    shown = json.dumps(response)[: prompts.LONGEST]
    return Failure(PARSE, f"not a response of the chat API: {shown}")
  if declined or choice.get("finish_reason") == "content_filter":
    return Failure(REFUSAL, str(declined or "content filter"))
  if not isinstance(content, str):
    return Failure(PARSE, f"the answer is {content!r}, expected text")
  return content


def _read_kept(path: pathlib.Path) -> dict[str, Any] | None:
  try:
    found = artifacts.read_json(path)
  except (FileNotFoundError, ValueError):
    return None
  return found if isinstance(found, dict) else None


def _whole(value: Any) -> int:
  return value if isinstance(value, int) and value > 0 else 0


def _excerpt(error: urllib.error.HTTPError) -> str:
  try:
    return error.read(prompts.LONGEST).decode(errors="replace").strip()
  except (OSError, http.client.HTTPException):
    return ""


def _retry_after(value: str | None) -> float:
  """Seconds that the server asks to wait, at most a minute."""
  if not value:
    return 0.0
  try:
    seconds = float(value)
  except ValueError:
    try:
      then = email.utils.parsedate_to_datetime(value)
    except ValueError:
      return 0.0
    seconds = then.timestamp() - time.time()
  return min(max(seconds, 0.0), _LONGEST_PAUSE)

"""A small server of one folder of pages, with a model behind it.

For one reader on the machine itself: it listens on the loopback address only,
and answers only requests that name it, so that no page of another origin can
ask it anything.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import pathlib
import threading
from collections.abc import Callable

import numpy as np
from absl import logging

from gemmascope_jax.dashboards import site

HOST = "127.0.0.1"
_MOST = 2_000  # characters of a sentence
_SHOWN = 30  # latents of an answer

# A sentence -> its tokens' pieces, and its latents' activations [T, M].
Reader = Callable[[str], tuple[list[str], np.ndarray]]


def serve(folder: str | os.PathLike, reader: Reader, port: int = 8800) -> None:
  """Serves until it is interrupted.

  Args:
    folder: of `site.write`.
    reader: reads sentences; positions that don't count are 0.
    port: to listen on; 0: any that is free.

  Raises:
    FileNotFoundError: no pages in the folder.
    OSError: the port is taken.
  """
  with start(folder, reader, port) as server:
    print(f"http://{HOST}:{server.server_port}/#live  (Ctrl-C to stop)")
    server.serve_forever()


def start(
  folder: str | os.PathLike, reader: Reader, port: int = 0
) -> http.server.ThreadingHTTPServer:
  """The server, listening; see `serve`."""
  index = site.read_index(folder) | {"live": True}
  handler = functools.partial(
    _Handler,
    directory=os.fspath(pathlib.Path(folder)),
    index=site.script("index", index).encode("ascii"),
    answer=_Answer(index, reader),
  )
  try:
    return http.server.ThreadingHTTPServer((HOST, port), handler)
  except OSError as error:
    raise OSError(
      f"port {port} of {HOST}: {error.strerror}; name another one (--port)"
    ) from error


def check_weights(folder: str | os.PathLike, weights: str) -> None:
  """Refuses an SAE that is not the one the pages show.

  Args:
    folder: of `site.write`, with a row "weights" about the SAE.
    weights: hash of the SAE's weights.

  Raises:
    FileNotFoundError: no pages in the folder.
    ValueError: the pages are of other weights, or do not say of which.
  """
  about = {
    name: value for name, value in site.read_index(folder)["sae"]["about"]
  }
  said = about.get("weights")
  if said != weights:
    raise ValueError(
      f"the pages are of the SAE with weights {str(said)[:12]}..., and this one"
      f" has {weights[:12]}...: give the SAE that {folder} was made of, or make"
      " pages of this one"
    )


class _Answer:
  """Which of the latents that are shown fire on a sentence."""

  def __init__(self, index, reader: Reader):
    self._largest = {each["index"]: each["max"] for each in index["latents"]}
    self._reader = reader
    self._lock = threading.Lock()  # one sentence at a time

  def __call__(self, text: str) -> dict:
    if not text.strip():
      raise ValueError("the sentence is empty: type one")
    if len(text) > _MOST:
      raise ValueError(
        f"the sentence has {len(text):,} characters: at most {_MOST:,}"
      )
    if any("\ud800" <= letter <= "\udfff" for letter in text):
      raise ValueError(
        "the sentence holds half of a character (a surrogate alone): expected"
        " text that can be written as UTF-8"
      )
    with self._lock:
      pieces, values = self._reader(text)
    peaks = values.max(axis=0)
    fired = [
      (peaks[latent] / (largest or peaks[latent]), latent)
      for latent, largest in self._largest.items()
      if peaks[latent] > 0
    ]
    # Against its own largest: some latents are large everywhere.
    fired.sort(key=lambda each: (-each[0], each[1]))
    return {
      "pieces": pieces,
      "fired": len(fired),
      "latents": [
        {
          "index": latent,
          "max": self._largest[latent],
          "values": [float(f"{v:.6g}") for v in values[:, latent].tolist()],
        }
        for _, latent in fired[:_SHOWN]
      ],
    }


class _Handler(http.server.SimpleHTTPRequestHandler):
  """The folder's files, an index that says that a model answers, and POST."""

  def __init__(self, *arguments, index: bytes, answer: _Answer, **named):
    self._index, self._answer = index, answer
    super().__init__(*arguments, **named)

  def do_GET(self) -> None:  # noqa: N802, the library's name
    """A file."""
    if not self._is_ours():
      return
    if self.path.split("?")[0] == "/data/index.js":
      self._send(200, "text/javascript", self._index)
    else:
      super().do_GET()

  def do_POST(self) -> None:  # noqa: N802
    """What fires on a sentence."""
    if not self._is_ours():
      return
    kind = self.headers.get("Content-Type", "").split(";")[0]
    if self.path != "/live" or kind != "application/json":
      self._send_json(404, {"error": "expected POST /live with JSON"})
      return
    try:
      length = int(self.headers.get("Content-Length", ""))
      if length > 8 * _MOST:
        raise ValueError(f"{length:,} bytes: at most {8 * _MOST:,}")
      text = json.loads(self.rfile.read(length))["text"]
      if not isinstance(text, str):
        raise ValueError("text: expected a string")
      self._send_json(200, self._answer(text))
    except (ValueError, KeyError, TypeError) as error:
      self._send_json(400, {"error": f"{error}"})

  def log_message(self, *arguments) -> None:
    """Says nothing of each request."""
    logging.debug(*arguments)

  def _is_ours(self) -> bool:
    """Refuses names of other hosts, which could point here."""
    name = self.headers.get("Host", "").rpartition(":")[0]
    if name in (HOST, "localhost"):
      return True
    self._send_json(403, {"error": f"expected a request to {HOST}"})
    return False

  def _send_json(self, status: int, value: dict) -> None:
    self._send(status, "application/json", json.dumps(value).encode())

  def _send(self, status: int, kind: str, content: bytes) -> None:
    self.send_response(status)
    self.send_header("Content-Type", f"{kind}; charset=utf-8")
    self.send_header("Content-Length", str(len(content)))
    self.send_header("Cache-Control", "no-store")
    self.end_headers()
    self.wfile.write(content)

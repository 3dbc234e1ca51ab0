"""Who may read: a token that client and server share.

The token comes from a file or the environment, never from a command line,
which every user of a machine can read. Without TLS it crosses the network in
the clear.
"""

from __future__ import annotations

import hmac
import os
import pathlib

import pyarrow.flight as flight

VARIABLE = "GEMMASCOPE_SERVER_TOKEN"
_HEADER = "authorization"


def read_token(file: str | os.PathLike | None = None) -> str | None:
  """The token: a file's content, else the environment's, else None.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is empty, or the token holds what no header can carry.
  """
  if not file:
    where, token = f"${VARIABLE}", os.environ.get(VARIABLE, "").strip()
  else:
    where = f"token file {file}"
    try:
      raw = pathlib.Path(file).read_bytes()
    except OSError as error:
      raise FileNotFoundError(f"{where}: {error.strerror}") from error
    token = raw.decode("utf-8", "replace").strip()
    if not token:
      raise ValueError(f"{where} is empty: expected the token in it")
  if not (token.isascii() and (token.isprintable() or not token)):
    raise ValueError(
      f"{where} holds characters that a token can't have: expected printable"
      " ASCII on one line"
    )
  return token or None


def headers(token: str | None) -> list[tuple[bytes, bytes]]:
  """What a client sends with each call."""
  if token is None:
    return []
  return [(_HEADER.encode(), f"Bearer {token}".encode())]


class Gate(flight.ServerMiddlewareFactory):
  """Refuses calls without the token."""

  def __init__(self, token: str):
    super().__init__()
    self._expected = f"Bearer {token}".encode()

  def start_call(self, info, headers):
    """Called by Flight before each call."""
    given = headers.get(_HEADER) or [""]
    if not hmac.compare_digest(given[0].encode(), self._expected):
      raise flight.FlightUnauthenticatedError("wrong or no token")

"""What a server tells the people who run it."""

from __future__ import annotations

import sys
import threading
from typing import Any

from gemmascope_jax.data.serving.server import StoreServer
from gemmascope_jax.throughput import data_rate

_MOST_TRAINERS = 6  # on the status line


def hello(server: StoreServer) -> str:
  """Where the server is and what it serves, once it does."""
  store, (first, stop) = server.store, server.owned
  sites = ", ".join(
    f"{site} ({store.width(site)} wide)" for site in store.sites
  )
  return "\n".join(
    [
      f"serving {server.address}",
      f"  store  {store.root} ({store.fingerprint}), {store.plan.model}",
      f"  sites  {sites}; {store.plan.dtype}",
      f"  rows   {first:,}..{stop - 1:,} of {store.rows:,}",
      f"  memory {server.buffer_bytes / 2**30:.2f} GiB of ready batches;"
      f" trainers wait for a slower one {server.patience:g} s at most",
      f"  access {access_of(server)}",
    ]
  )


def access_of(server: StoreServer) -> str:
  """Who may read, in words."""
  who = "who has the token" if server.has_token else "anyone"
  if server.is_local:
    where = "on this machine only (--host=0.0.0.0: on the network)"
  else:
    where = f"who reaches {server.host}"
  secret = "encrypted" if server.has_tls else "not encrypted"
  return f"{who}, {where}; {secret}"


def warning(server: StoreServer) -> str | None:
  """What is unsafe about the server, or None."""
  if server.is_local:
    return None
  if not server.has_token:
    return (
      f"warning: anyone who reaches {server.host} can read the activations;"
      " set GEMMASCOPE_SERVER_TOKEN or --token_file"
    )
  if not server.has_tls:
    return (
      "warning: the token crosses the network in the clear; give --tls_cert"
      " and --tls_key unless the network is yours alone"
    )
  return None


class Line:
  """One line that says how it goes, refreshed; on a terminal in place."""

  def __init__(self, server: StoreServer, seconds: float | None = None):
    """Args: the server, and seconds between lines; None: 1, or 60 in a log."""
    self._server = server
    self._in_place = sys.stdout.isatty()
    self._seconds = seconds or (1.0 if self._in_place else 60.0)
    self._before = server.stats()
    self._shown = 0

  def run(self, done: threading.Event) -> None:
    """Shows the line until `done`."""
    while not done.wait(self._seconds):
      now = self._server.stats()
      line = status(self._before, now, self._seconds)
      end = "\n"
      if self._in_place:
        width, self._shown = self._shown, len(line)
        line, end = "\r" + line.ljust(width), ""
      print(line, end=end, flush=True)
      self._before = now


def status(before: dict[str, Any], now: dict[str, Any], seconds: float) -> str:
  """What happened between two `StoreServer.stats`, in one line."""
  rows = (now["rows_served"] - before["rows_served"]) / seconds
  size = (now["bytes_served"] - before["bytes_served"]) / seconds
  parts = [f"{rows:,.0f} rows/s", data_rate(size)]
  read = now["bytes_read"] - before["bytes_read"]
  parts.append(f"{data_rate(read / seconds)} from the store")
  shares = [
    share
    for trainer in now["trainers"]
    if (share := _disk_share(trainer, before)) is not None
  ]
  if shares:
    mean = sum(shares) / len(shares)
    parts.append(f"waiting for the disk {mean:.0%}")
  filled = now["buffer_filled"] / max(now["buffer_bytes"], 1)
  parts.append(f"buffer {filled:.0%}")
  some = now["trainers"][:_MOST_TRAINERS]
  steps = ", ".join(f"{t['name']} at {t['step']:,}" for t in some)
  if len(now["trainers"]) > len(some):
    steps += f", {len(now['trainers']) - len(some)} more"
  return f"{'; '.join(parts)}; {steps or 'no trainers'}"


def summary(server: StoreServer) -> str:
  """The table at the end."""
  stats = server.stats()
  served, read = stats["rows_served"], stats["rows_read"]
  lines = [
    f"rows served      {served:,} ({stats['bytes_served'] / 2**30:.2f} GiB)",
    f"rows read        {read:,} ({stats['bytes_read'] / 2**30:.2f} GiB)",
  ]
  if read:
    lines.append(f"served per read  {served / read:.2f}")
  if stats["trainers"]:
    width = max(len(t["name"]) for t in stats["trainers"])
    width = max(width, len("trainer"))
    columns = ("site", "next step", "rows", "disk", "others", "itself")
    lines.append("")
    lines.append(
      f"{'trainer':<{width}}  {columns[0]:<10}"
      + "".join(f"{name:>14}" for name in columns[1:])
    )
  for trainer in stats["trainers"]:
    waited = [
      f"{trainer['waited'].get(why, 0.0):>14.0%}"
      for why in ("disk", "other trainers", "trainer")
    ]
    lines.append(
      f"{trainer['name']:<{width}}  {trainer['site']:<10}"
      f"{trainer['step']:>14,}{trainer['rows']:>14,}{''.join(waited)}"
    )
  if stats["trainers"]:
    lines.append("disk, others, itself: share of the time waiting for them")
  return "\n".join(lines)


def _disk_share(
  trainer: dict[str, Any], before: dict[str, Any]
) -> float | None:
  """Share of the time since `before` that a trainer waited for the disk."""
  for old in before["trainers"]:
    if (old["name"], old["site"]) == (trainer["name"], trainer["site"]):
      seconds = trainer["seconds"] - old["seconds"]
      waited = trainer["seconds"] * trainer["waited"].get("disk", 0.0)
      waited -= old["seconds"] * old["waited"].get("disk", 0.0)
      return min(max(waited / seconds, 0.0), 1.0) if seconds > 0 else None
  return None

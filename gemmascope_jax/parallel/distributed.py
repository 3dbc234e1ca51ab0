"""Several processes, on one host or many, as one program."""

from __future__ import annotations

import re
import socket
import sys
import threading

import jax

from gemmascope_jax.parallel import last_words, processes

AUTO, ON, OFF = "auto", "on", "off"
_NOBODY = "coordinator_address should be defined"  # what JAX says alone
_START_S = 300
_QUIET_S = 5  # then it says what it waits for
_LOST = re.compile(
  r"Gloo|NCCL|connection (closed|reset) by peer|UNAVAILABLE|socket closed"
  r"|coordination (service|agent)|tasks? (is|are) unhealthy|heartbeat",
  re.IGNORECASE,
)


def start(how: str = AUTO, peer_timeout_s: int = 60) -> str:
  """Joins the other processes; before anything touches a device.

  Each process then sees the devices of all, and a mesh may span them.

  Args:
    how: "auto": with the processes of the cluster that JAX finds (Slurm, Open
      MPI, GKE, Cloud TPU, Kubernetes), alone where there is none; "on": the
      same, but it must find one; "off": alone; "HOST:PORT,COUNT,INDEX": the
      address of the first process, how many there are, and which this is.
    peer_timeout_s: a process that has given no sign of life for so long is
      lost: then all others end, too.

  Returns:
    What was found, in words; "" for a process alone.

  Raises:
    ValueError: none of these, or "on" and there is no cluster.
    ConnectionError: there is a cluster, but the processes did not find each
      other within five minutes.
  """
  if peer_timeout_s < 1:
    raise ValueError(f"--peer_timeout={peer_timeout_s}: expected 1 or more (s)")
  found = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", how)
  explicit = (
    found is not None
    and int(found[3]) < int(found[2])
    and 0 < int(found[1].rpartition(":")[2]) < 2**16
  )
  if not explicit and how not in (AUTO, ON, OFF):
    raise ValueError(
      f"--distributed={how!r}: expected auto, on, off, or HOST:PORT,COUNT,INDEX"
      " as in 10.0.0.1:1234,4,0, with PORT below 65536 and INDEX below COUNT"
    )
  if how == OFF:
    return ""
  where = (found[1], int(found[2]), int(found[3])) if explicit else ()
  waits = threading.Timer(
    _QUIET_S, print, (_waiting(where),), {"file": sys.stderr}
  )
  waits.start()
  try:
    jax.distributed.initialize(
      *where,
      initialization_timeout=_START_S,
      heartbeat_timeout_seconds=peer_timeout_s,
      shutdown_timeout_seconds=peer_timeout_s,
    )
  except ValueError as error:
    if explicit or _NOBODY not in str(error):
      raise
    if how == ON:
      raise ValueError(
        "--distributed=on: JAX finds no cluster here (Slurm, Open MPI, GKE,"
        " Cloud TPU or Kubernetes); give HOST:PORT,COUNT,INDEX, or off for a"
        " process alone"
      ) from error
    return ""
  except Exception as error:  # of whatever library the cluster is asked with
    raise ConnectionError(
      f"--distributed={how}: there is a cluster, but its processes could not be"
      f" joined: {error}\nAll have to be started within {_START_S} s, and to"
      " reach the first one's port; --distributed=off runs this one alone"
    ) from error
  finally:
    waits.cancel()
  if jax.process_count() == 1:
    return ""
  processes.meet()
  me = f"process {jax.process_index()} of {jax.process_count()}"
  last_words.promise(
    f"\nerror: {me}, on {socket.gethostname()}, ended abruptly: it was killed,"
    " ran out of memory, or lost another process (one that gives no sign of"
    f" life for {peer_timeout_s} s counts as lost, and ends all). The other"
    " processes' output says more. What was saved is whole: the same command"
    " in all processes goes on from there."
  )
  return (
    f"{me}, on {socket.gethostname()}: {jax.local_device_count()}"
    f" {jax.default_backend()} devices here, {jax.device_count()} in all; if"
    f" one is lost, all end within {peer_timeout_s} s"
  )


def _waiting(where: tuple[str, int, int] | tuple[()]) -> str:
  """What a process says that the others keep waiting."""
  others = "the other processes"
  if where:
    others += f" of {where[1]}, to meet at {where[0]} (this is {where[2]})"
  return f"waiting up to {_START_S} s for {others}"


def lost_peer(error: BaseException) -> str | None:
  """What to tell a user whose step failed since another process is gone.

  Returns:
    A sentence; None if this is no such error.
  """
  if not processes.are_several() or not _LOST.search(str(error)):
    return None
  first = str(error).strip().splitlines()[0][:200]
  return (
    f"process {jax.process_index()} of {jax.process_count()} lost another"
    f" process, whose own output says why ({first}). What was saved is whole:"
    " the same command in all processes goes on from there."
  )

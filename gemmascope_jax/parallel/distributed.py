"""Several processes, on one host or many, as one program."""

from __future__ import annotations

import re

import jax

AUTO = "auto"


def start(how: str) -> None:
  """Joins the other processes; before anything touches a device.

  Each process then sees the devices of all, and a mesh may span them.

  Args:
    how: "": this process is alone; "auto": as the cluster says (Slurm, Open MPI,
      Kubernetes, Cloud TPU); "HOST:PORT,COUNT,INDEX": the address of the first
      process, how many there are, and which this is.

  Raises:
    ValueError: none of these, or a cluster that "auto" does not know.
  """
  if not how:
    return
  if how == AUTO:
    try:
      jax.distributed.initialize()
    except ValueError as error:
      raise ValueError(
        f"--distributed=auto: no cluster found ({error}); give"
        " HOST:PORT,COUNT,INDEX, or leave it out for a process alone"
      ) from error
    return
  found = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", how)
  if not found or not int(found[3]) < int(found[2]):
    raise ValueError(
      f"--distributed is {how!r}; expected 'auto', or HOST:PORT,COUNT,INDEX as"
      " in 10.0.0.1:1234,4,0, with INDEX below COUNT"
    )
  jax.distributed.initialize(found[1], int(found[2]), int(found[3]))

"""The only importer of Orbax.

Orbax is imported on first use: most programs that import the package never
touch a checkpoint, and the import takes a good part of a second.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging as absl_logging

from gemmascope_jax import artifacts

# How the libraries below say that a disk is full.
_FULL = ("RESOURCE_EXHAUSTED", "No space left", "File too large", "Disk quota")


def barrier(name: str, timeout_s: int) -> None:
  """Until every process has called this with `name`; no device takes part.

  A process that is lost meanwhile ends this one, as `parallel.start` says.
  """
  from orbax.checkpoint import multihost

  wait = multihost.get_barrier_sync_fn()
  wait(key=name, timeout_ms=1000 * timeout_s)


def is_checkpoint(path: str | os.PathLike) -> bool:
  """Whether a folder is itself an Orbax checkpoint of a tree of arrays."""
  path = pathlib.Path(path)
  # `_METADATA` describes a tree (`v1` keeps it in a folder below), `checkpoint`
  # did in the oldest files.
  return any(
    (path / name).is_file()
    for name in ("_METADATA", "_CHECKPOINT_METADATA", "orbax.checkpoint")
  ) or ((path / "checkpoint").is_file() and (path / "_sharding").is_file())


def tree_shapes(path: str | os.PathLike) -> dict[str, Any]:
  """Names, shapes and dtypes of a checkpoint's arrays, without reading them.

  Args:
    path: folder of a checkpoint of a tree of arrays, of Orbax's v0 or v1.

  Returns:
    Nested dicts, as they were saved, of `jax.ShapeDtypeStruct`.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: it is no checkpoint, or a damaged one.
  """
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _metadata(path)
  )


def load_raw_tree(
  path: str | os.PathLike, keep: Callable[[str], bool] = lambda path: True
) -> dict[str, Any]:
  """A checkpoint's arrays in host memory, on whatever devices it was saved.

  Args:
    path: folder of a checkpoint of a tree of arrays, of Orbax's v0 or v1.
    keep: whether to read the array at a path, its keys joined by slashes. The
      others are not read from disk and are missing from the result.

  Returns:
    Nested dicts, as they were saved, of `np.ndarray` (bfloat16 by ml_dtypes).

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: it is no checkpoint, or a damaged one: a file is missing or cut.
  """
  from orbax.checkpoint import v1 as ocp

  def abstract(keys, leaf):
    name = jax.tree_util.keystr(keys, simple=True, separator="/")
    # An abstract array of NumPy's kind is restored as one: no devices needed.
    return np.empty(leaf.shape, leaf.dtype) if keep(name) else ocp.PLACEHOLDER

  wanted = jax.tree_util.tree_map_with_path(abstract, _metadata(path))
  try:
    tree = ocp.load(path, wanted)
  except Exception as error:  # what a damaged file raises is not documented
    raise ValueError(
      f"Orbax checkpoint {path} can't be read, a file is missing or cut short:"
      f" copy it again ({type(error).__name__}: {str(error)[:300]})"
    ) from error
  return _without(tree, ocp.PLACEHOLDER)


def _metadata(path: str | os.PathLike) -> Any:
  """Orbax's tree of array descriptions."""
  from orbax.checkpoint import v1 as ocp

  if not pathlib.Path(path).is_dir():
    raise FileNotFoundError(f"Orbax checkpoint {path}: no such folder")
  try:
    tree = ocp.metadata(path).metadata
  except Exception as error:
    raise ValueError(
      f"folder {path} is no whole Orbax checkpoint: its description can't be"
      f" read ({type(error).__name__}: {str(error)[:300]})"
    ) from error
  if not isinstance(tree, dict) or not tree:
    raise ValueError(f"Orbax checkpoint {path} holds no tree of arrays")
  return tree


def _without(tree: Any, mark: Any) -> Any:
  """The tree without leaves that are `mark` and dicts that they empty."""
  if not isinstance(tree, dict):
    return tree
  kept = {
    key: _without(value, mark)
    for key, value in tree.items()
    if value is not mark
  }
  return {
    key: value
    for key, value in kept.items()
    if not (isinstance(value, dict) and not value)
  }


class Run:
  """The checkpoints of one training run, one folder a step.

  Saving is asynchronous and atomic (a half-written step is not listed and is
  cleaned up); a restore lands on the shardings of the tree that it is given,
  so it may be on other devices than the save was. A checksum of every array is
  saved with it, so that a bit that flipped on disk is noticed.

  Args:
    folder: where the steps live; made.
    keep: how many of the latest are kept.
    keep_best: whether the one with the lowest value is kept besides.
  """

  def __init__(
    self, folder: str | os.PathLike, keep: int, keep_best: bool = False
  ):
    from orbax.checkpoint import v1 as ocp

    policies = ocp.training.preservation_policies
    preserved = [policies.LatestN(keep)]
    if keep_best:
      best = policies.BestN(
        get_metric_fn=lambda metrics: metrics["value"],
        reverse=True,
        n=1,
        keep_checkpoints_without_metrics=False,
      )
      preserved.append(best)
    self._folder = pathlib.Path(folder).resolve()
    self._saving = None  # Orbax's answer to the last save
    absl_logging.get_absl_logger().addFilter(_is_news)
    # Several runs may be saved at once by several processes, which must not
    # take the wait for each other of one for that of another.
    context = ocp.Context()
    context.multiprocessing.barrier_sync_key_prefix = self._folder.name
    self._checkpointer = ocp.training.Checkpointer(
      self._folder,
      context=context,
      preservation_policy=policies.AnyPreservationPolicy(preserved),
      cleanup_tmp_directories=True,
    )

  def __enter__(self) -> Run:
    return self

  def __exit__(self, *unused) -> None:
    with self._explained():
      self._checkpointer.close()

  @property
  def latest(self) -> int | None:
    """The last step that is saved or being saved, or None."""
    latest = self._checkpointer.latest
    return None if latest is None else latest.step

  def save(self, step: int, state: Any, value: float | None = None) -> None:
    """Starts writing `state`, a pytree of arrays, as `step`, if it is not there.

    Returns once the arrays were copied, so their buffers may be donated; waits
    for the save before it, if need be.

    Args:
      step: after the last one.
      state: pytree of arrays.
      value: by which the best is chosen, the lowest.

    Raises:
      OutOfDiskError: the save before it, or this one, found no room.
    """
    if step == self.latest:
      return
    metrics = None if value is None else {"value": value}
    with self._explained():
      # Not forced, Orbax leaves out a save while another one is being written.
      self._saving = self._checkpointer.save_checkpointables_async(
        step, {"state": _with_sums(state)}, force=True, metrics=metrics
      )

  def check(self) -> None:
    """Raises what went wrong with a save that is over; waits for none.

    Raises:
      OutOfDiskError: see `save`.
    """
    if self._saving is None:
      return
    with self._explained():
      try:
        self._saving.result(timeout=0)
      except TimeoutError:  # still being written
        return
    self._saving = None

  def restore(self, step: int, like: Any) -> Any:
    """Reads `step` into the structure, dtypes and shardings of `like`.

    Args:
      step: one that is there.
      like: of arrays or `jax.ShapeDtypeStruct`s; a leaf whose sharding is None
        goes to the default device.

    Raises:
      ValueError: the checkpoint does not fit that structure, or its content is
        not what was saved.
    """
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=x.sharding or default
      ),
      {"tree": like, "sums": jax.eval_shape(_sums, like)},
    )
    try:
      found = self._checkpointer.load_checkpointables(step, {"state": abstract})
    except Exception as error:  # what a damaged file raises is not documented
      why = f"{type(error).__name__}: {str(error)[:100]}"
      raise ValueError(self._damaged(step, why)) from error
    state, saved = found["state"]["tree"], found["state"]["sums"]
    now = jax.device_get(_sums(state))
    if not np.array_equal(now, jax.device_get(saved)):
      raise ValueError(self._damaged(step, "a checksum is wrong"))
    return state

  def _damaged(self, step: int, why: str) -> str:
    return (
      f"checkpoint {self._folder / str(step)} can't be read, a file is missing"
      " or damaged: delete that folder and run the same command again, which"
      f" goes on from the one before ({why})"
    )

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Says what a full disk means."""
    try:
      yield
    except Exception as error:  # TensorStore's are of several kinds
      if not any(word in str(error) for word in _FULL):
        raise
      raise artifacts.OutOfDiskError(
        errno.ENOSPC,
        f"out of disk while saving a checkpoint below {self._folder}: those"
        " before it are untouched; free space on that disk, and run the same"
        " command again",
      ) from error


def _is_news(record: logging.LogRecord) -> bool:
  """Not Orbax's tracebacks of its threads' errors, which are raised as well."""
  return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _with_sums(state: Any) -> dict[str, Any]:
  return {"tree": state, "sums": _sums(state)}


@jax.jit
def _sums(state: Any) -> jax.Array:
  """uint32 [leaves]: of each array's bits, the same however it is sharded.

  Each element's bits are multiplied with an odd number of its own and summed
  modulo 2^32: no change of a single element leaves that sum as it was.
  """
  return jnp.stack([_sum(leaf) for leaf in jax.tree.leaves(state)])


def _sum(x: jax.Array) -> jax.Array:
  if x.dtype == bool:
    x = x.astype(jnp.uint8)
  words = jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
  bits = jax.lax.bitcast_convert_type(x, words).astype(jnp.uint32)
  place = jnp.zeros(bits.shape, jnp.uint32)
  for axis, size in enumerate(bits.shape):
    iota = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    place = place * jnp.uint32(size % 2**32) + iota
  odd = place * jnp.uint32(2654435762) + jnp.uint32(1)
  return (bits * odd).sum(dtype=jnp.uint32)

"""A request to end, SIGTERM, that waits for the step to be over."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


class PreemptedError(RuntimeError):
  """The process was asked to end (SIGTERM) and has saved everything."""


@contextlib.contextmanager
def notice() -> Iterator[Callable[[int], bool]]:
  """Turns SIGTERM into an answer.

  Yields:
    (step) -> whether the process was asked to end. Of several processes that
    train together, each must ask at every step, and all get the same answer at
    the same step.
  """
  if jax.process_count() > 1:
    # JAX's own handler tells all processes which step is the last.
    yield multihost_utils.reached_preemption_sync_point
    return
  asked = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield lambda step: False  # only the main thread may handle signals
    return
  before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
  try:
    yield lambda step: asked.is_set()
  finally:
    signal.signal(signal.SIGTERM, before)

"""A request to end, SIGTERM or Ctrl-C, that waits for the step to be over."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from absl import logging
from jax.experimental import multihost_utils


class PreemptedError(RuntimeError):
  """The process was asked to end and has saved everything.

  Attributes:
    signal: what asked, `signal.SIGTERM` or `signal.SIGINT`.
  """

  def __init__(self, message: str, number: signal.Signals = signal.SIGTERM):
    super().__init__(message)
    self.signal = number


@contextlib.contextmanager
def notice() -> Iterator[Callable[[int], signal.Signals | None]]:
  """Turns SIGTERM, and the first Ctrl-C, into an answer.

  Yields:
    (step) -> the signal that asked the process to end, or None. Of several
    processes that train together, each must ask at every step, and all get the
    same answer at the same step; there Ctrl-C ends at once.
  """
  if jax.process_count() > 1:
    # JAX's own handler tells all processes which step is the last.
    reached = multihost_utils.reached_preemption_sync_point
    yield lambda step: signal.SIGTERM if reached(step) else None
    return
  if threading.current_thread() is not threading.main_thread():
    yield lambda step: None  # only the main thread may handle signals
    return
  asked: list[signal.Signals] = []

  def interrupted(number, frame):
    del frame
    if not asked:
      logging.warning(
        "stops after this step; Ctrl-C again stops without saving"
      )
    asked.append(signal.Signals(number))
    signal.signal(signal.SIGINT, before[signal.SIGINT])

  handlers = {
    signal.SIGTERM: lambda number, _: asked.append(signal.Signals(number)),
    signal.SIGINT: interrupted,
  }
  if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    del handlers[signal.SIGINT]  # as of a shell's background job: stays so
  before = {n: signal.signal(n, handle) for n, handle in handlers.items()}
  try:
    yield lambda step: asked[0] if asked else None
  finally:
    for number, handle in before.items():
      signal.signal(number, handle)

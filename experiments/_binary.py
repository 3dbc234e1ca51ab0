"""What all binaries share: flags -> config -> one library call."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from gemmascope_jax import parallel, training
from gemmascope_jax.experiment import runs, settings
from gemmascope_jax.parallel import processes

_TRACEBACK = flags.DEFINE_bool(
  "traceback", False, "Show the whole traceback of an error."
)
_DISTRIBUTED = flags.DEFINE_string(
  "distributed",
  "auto",
  "In several processes: auto, on, off, or HOST:PORT,COUNT,INDEX in each; see"
  " `parallel.start`.",
)
_PEER_TIMEOUT = flags.DEFINE_integer(
  "peer_timeout", 60, "Seconds without a sign of life: a process is lost."
)
_CHECK_ONLY = flags.DEFINE_bool(
  "check_only", False, "Check flags and config, and end before any work."
)
# Errors that explain themselves; anything else is ours and shows its traceback.
_EXPLAINED = (
  ValueError,
  FileNotFoundError,
  PermissionError,
  ConnectionError,
  ImportError,
  OSError,
  FloatingPointError,
)


def run(
  stage: Callable[[Any], None],
  default: str | None = None,
  *,
  together: bool = False,
) -> None:
  """Parses flags and calls `stage` with the locked config.

  Args:
    stage: the library call.
    default: config file if no `--config` is given; None: it has to be.
    together: of several processes all call it; else the first does, and the
      others wait.
  """

  def alone(config, arguments):
    if arguments:
      raise app.UsageError(f"unexpected arguments: {' '.join(arguments)}")
    stage(config)

  run_commands(alone, default, required=default is None, together=together)


def run_commands(
  stage: Callable[[Any, list[str]], None],
  default: str | None = None,
  *,
  required: bool = False,
  together: bool = False,
) -> None:
  """`run` of a binary with commands of its own, which may need no config.

  Args:
    stage: takes the config, None if there is none, and the other arguments.
    default: see `run`.
    required: whether `--config` has to be given.
    together: see `run`.
  """
  config = config_flags.DEFINE_config_file(
    "config",
    default,
    "Config file; any value can be overridden: --config.recipe.width=8192.",
    lock_config=True,
  )
  if required:
    flags.mark_flag_as_required("config")

  def main(argv):
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)  # Orbax tells all it does
    status = 1
    try:
      status = _status(lambda: run_in_processes(config.value, argv[1:]))
    finally:
      _leave(status)

  def run_in_processes(config, arguments):
    if _CHECK_ONLY.value:
      _check(config)
      return
    found = parallel.start(_DISTRIBUTED.value, _PEER_TIMEOUT.value)
    if found:
      print(found, file=sys.stderr, flush=True)
    if together:
      stage(config, arguments)
    else:
      processes.by_the_first(lambda: stage(config, arguments))
    processes.wait("the end")

  app.run(main, flags_parser=_parse)


def _check(config: Any) -> None:
  """What can be known to be wrong before any work."""
  if config is None:
    return
  if "runs" in config:  # else it is no run's, but a fine-tune's
    for each in runs.runs(config).values():
      settings.check(each)
  print(f"checked: would write below {config.workdir}")


def refuse(when: str, *given: flags.FlagHolder) -> None:
  """Raises `ValueError` for a flag that was given and would do nothing.

  Args:
    when: completes "--out does nothing ...": "without --compare".
    *given: flags that must be at their defaults.
  """
  for flag in given:
    if flag.value != flag.default:
      raise ValueError(f"--{flag.name} does nothing {when}: leave it out")


def _status(call: Callable[[], None]) -> int:
  """Calls it; says on stderr what went wrong; the process's exit status."""
  try:
    call()
  except training.PreemptedError as error:
    print(f"\nstopped: {error}", file=sys.stderr)
    return 128 + error.signal
  except KeyboardInterrupt:
    print(
      "\nstopped; the same command goes on from what was saved last",
      file=sys.stderr,
    )
    return 128 + signal.SIGINT
  except Exception as error:
    lost = parallel.lost_peer(error)
    if _TRACEBACK.value or not (lost or isinstance(error, _EXPLAINED)):
      raise
    print(
      f"\nerror: {lost or error}\n(--traceback shows where it was raised)",
      file=sys.stderr,
    )
    return 1
  return 0


def _leave(status: int) -> None:
  """Ends the process, of several at once if something is wrong.

  Python's own end would first wait for the others, and they for this one.
  """
  parallel.last_words.keep()
  asked_to = status == 128 + signal.SIGTERM  # then all are
  if status and not asked_to and processes.are_several():
    if sys.exc_info()[0] is not None:
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  if status and sys.exc_info()[0] is None:
    sys.exit(status)


def _parse(arguments):
  """Parses flags; what is wrong with them is an error without a traceback."""
  try:
    return flags.FLAGS(_last_of_each(arguments))
  except (AttributeError, KeyError) as error:
    while error.args and isinstance(error.args[0], Exception):
      error = error.args[0]
    sys.exit(f"error: no such setting in the config: {_message(error)}")
  except flags.Error as error:
    sys.exit(f"error: {_message(error)}\n(--helpfull lists the flags)")


def _last_of_each(arguments: list[str]) -> list[str]:
  """Without what a later `--config.NAME=` overrides, flag files included.

  ml_collections would append a tuple that is given twice to the first one.
  """
  given = [arguments[0]]
  given += flags.FLAGS.read_flags_from_files(arguments[1:], force_gnu=False)
  name = lambda text: text.partition("=")[0].lstrip("-")
  last = {name(text): index for index, text in enumerate(given)}
  return [
    text
    for index, text in enumerate(given)
    if not name(text).startswith("config.")
    or "=" not in text
    or last[name(text)] == index
  ]


def _message(error: Exception) -> str:
  """What an error says, without a traceback or quotes that are part of it."""
  text = str(error.args[0] if error.args else error).strip()
  if "Traceback (most recent call last):" in text:
    # A config file's own error: "flag ...: ... Traceback ... ValueError: why".
    what, why = re.split(r":[^:]*Traceback ", text, maxsplit=1)
    return f"{what}: {re.split(r'(?m)^[A-Za-z_.]+: ', why)[-1]}"
  return text

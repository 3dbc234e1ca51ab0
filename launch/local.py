"""Runs a binary for several settings on this machine, a few at a time.

  python -m launch.local --binary=quickstart --config=configs/quickstart.py \\
    --root=runs/sites --jobs=1 \\
    --run='harvest.sites=("res.5",) train.site=res.5' \\
    --run='harvest.sites=("res.9",) train.site=res.9'

Each run gets its own work directory and log below `--root`, named by its
settings. A run that finished is not started again and one that was killed goes
on where it was, so after a crash the same command finishes the queue.

With `--processes=2` each run is two processes that train together on loopback,
as they would on two machines; logs are log.0.txt, log.1.txt. If one dies, the
others have 20 seconds to notice and are then ended, within 30 seconds in all.
The exit status is that of the first failure.
"""

from __future__ import annotations

import sys

from absl import app, flags

from launch import arguments, queue, runs

_BINARY = flags.DEFINE_string("binary", "quickstart", "Module in experiments/.")
_CONFIG = flags.DEFINE_string("config", None, "Config file.", required=True)
_ROOT = flags.DEFINE_string("root", None, "Where runs go.", required=True)
_RUN = flags.DEFINE_multi_string(
  "run", [], "Settings of one run: 'key=value key=value', without --config."
)
_JOBS = flags.DEFINE_integer(
  "jobs", 1, "Runs at a time, sharing the GPUs; 0: fill them.", lower_bound=0
)
_PROCESSES = flags.DEFINE_integer(
  "processes", 1, "Processes of each run, on loopback.", lower_bound=1
)


def main(argv) -> None:
  """Plans and works the queue."""
  arguments.require_flags_only(argv)
  try:
    planned = runs.plan(_BINARY.value, _CONFIG.value, _ROOT.value, _RUN.value)
    failed = queue.failures(planned, _JOBS.value, _PROCESSES.value)
  except (ValueError, FileNotFoundError) as error:
    sys.exit(f"error: {error}")
  if failed:
    print(
      f"{len(failed)} of {len(planned)} runs failed; read their logs, mend the"
      " cause and run the same command again",
      file=sys.stderr,
    )
    sys.exit(next(iter(failed.values())))


if __name__ == "__main__":
  app.run(main)

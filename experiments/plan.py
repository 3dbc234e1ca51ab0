"""What a config will cost, before anything starts.

python -m experiments.plan --config=configs/gemma2_2b.py:res.12,16k \\
  --accelerator=tpu_v5p --devices=4

Tokens, operations, device-hours, bytes, servers, and whether to store, checked
against the paper's figures. Servers and trainers as events, and a page:

python -m experiments.plan --config=configs/gemma2_2b.py:res.12,65k \\
  --simulate --trainers=50 --services=26 --page=plan.html

See docs/planning.md. Nothing is loaded or downloaded.
"""

import dataclasses
import math

from absl import flags

from experiments import _binary
from launch.planner import accelerators, costs, page, plan, prediction, tables

_ACCELERATOR = flags.DEFINE_string(
  "accelerator", "h100", f"One of {', '.join(accelerators.ACCELERATORS)}."
)
_PEAK = flags.DEFINE_float(
  "peak_tflops", 0.0, "Of another accelerator, at the config's precision."
)
_DOLLARS = flags.DEFINE_float(
  "device_dollars", None, "Of an hour of one; default: that of the table."
)
_DEVICES = flags.DEFINE_integer(
  "devices", 0, "Of a harvest, or a trainer; 0: those of the config's mesh."
)
_UTILISATION = flags.DEFINE_float(
  "utilisation", accelerators.UTILISATION, "Share of the peak, in training."
)
_FORWARD = flags.DEFINE_float(
  "forward_utilisation", accelerators.UTILISATION, "The same in harvesting."
)
_DISK = flags.DEFINE_float("disk_gib_s", 0.2, "A server reads, GiB/s.")
_NETWORK = flags.DEFINE_float("network_gib_s", 1.1, "A server sends, GiB/s.")
_STORAGE = flags.DEFINE_float(
  "tib_month_dollars", 10.0, "Of a TiB that is stored for a month."
)
_MODEL = flags.DEFINE_string(
  "model", "", "Architecture, if lm.source does not tell, as gemma-2-2b."
)
_SIMULATE = flags.DEFINE_bool(
  "simulate", False, "Simulate the servers and trainers of the first run."
)
_TRAINERS = flags.DEFINE_integer("trainers", 1, "At a time, over all services.")
_SERVICES = flags.DEFINE_integer(
  "services",
  1,
  "Sites that are trained on at the same time, each with its own servers.",
)
_SERVERS = flags.DEFINE_integer(
  "servers", 0, "Simulated: of each service; 0: as many as are needed."
)
_BUFFER = flags.DEFINE_float("buffer_gib", 1.0, "Simulated: of each server.")
_PREEMPTION = flags.DEFINE_float(
  "preemption_hours", 0.0, "Simulated: between a trainer's; 0: never."
)
_DOWN = flags.DEFINE_float(
  "down_minutes", 10.0, "Simulated: until it computes again."
)
_NOTICE = flags.DEFINE_bool(
  "notice", True, "Simulated: a trainer saves when it is preempted."
)
_PATIENCE = flags.DEFINE_float(
  "patience", 30.0, "Simulated: seconds, as experiments.serve has it."
)
_SLOWER = flags.DEFINE_float(
  "slower", 0.0, "Simulated: steps take up to this share longer."
)
_SEED = flags.DEFINE_integer("seed", 0, "Simulated: of what is drawn.")
_PAGE = flags.DEFINE_string("page", None, "HTML file to write, with figures.")


def _machine(config) -> costs.Machine:
  chip = accelerators.find(_ACCELERATOR.value)
  changed = {}
  for given in (_PEAK, _DOLLARS):
    if not 0 <= (given.value or 0) < math.inf:
      raise ValueError(
        f"--{given.name}={given.value}: expected 0 or more, and finite"
      )
  if _PEAK.value:
    changed["peaks"] = dict.fromkeys(chip.peaks, _PEAK.value * 1e12)
    changed["name"] = f"accelerator of {_PEAK.value:g} TFLOP/s"
  if _DOLLARS.value is not None:
    changed["dollars"] = _DOLLARS.value
  return costs.Machine(
    dataclasses.replace(chip, **changed),
    _DEVICES.value or config.mesh.data * config.mesh.model,
    _UTILISATION.value,
    _FORWARD.value,
    _DISK.value,
    _NETWORK.value,
    _STORAGE.value,
  )


def main(config) -> None:
  """Prints the plan, and writes the page."""
  simulated = (_SERVERS, _BUFFER, _PREEMPTION, _DOWN, _NOTICE, _PATIENCE)
  simulated = (*simulated, _SLOWER, _SEED)
  if not _SIMULATE.value:
    _binary.refuse("without --simulate", *simulated)
  machine = _machine(config)
  scenario = prediction.Scenario(
    _TRAINERS.value,
    _SERVICES.value,
    *(flag.value for flag in simulated),
  )
  made = plan.make(config, machine, _MODEL.value, max(scenario.shares))
  found = None
  if _SIMULATE.value and made.runs[0].is_live:
    raise ValueError(
      'data.source is "live": a trainer makes its own activations, and there are'
      " no servers to simulate"
    )
  if _SIMULATE.value:
    found = prediction.predict(made.runs[0], machine, scenario)
  print("\n\n".join(map(tables.text, tables.tables(made, found))))
  if _PAGE.value:
    for path in page.write(_PAGE.value, made, found):
      print(f"\nwritten  {path}")


if __name__ == "__main__":
  _binary.run(main)

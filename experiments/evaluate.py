"""SAEs -> delta loss, FVU and L0 beside baselines, and named releases.

python -m experiments.evaluate --config=configs/quickstart.py

Or the paper's studies, of the run's SAEs or of any others:

python -m experiments.evaluate --config=configs/quickstart.py --study=all
python -m experiments.evaluate --config=configs/gemma2_2b.py \\
  --study=fidelity,position --sae=res.12=path/to/params.npz --sae=...
"""

from absl import flags

from experiments import _binary
from gemmascope_jax import experiment, report
from gemmascope_jax.parallel import processes

_STUDY = flags.DEFINE_list(
  "study",
  [],
  f"Studies to run instead: {', '.join(experiment.STUDIES)}, or all.",
)
_SAE = flags.DEFINE_multi_string(
  "sae",
  [],
  "With --study: an SAE, as PATH, SITE=PATH or NAME:SITE=PATH; may be given"
  " several times. None: those of the run.",
)


def main(config) -> None:
  """Evaluates and prints the table, or what studies found."""
  if not _STUDY.value:
    if _SAE.value:
      raise ValueError("--sae is for studies: say which, as --study=fidelity")
    print(report.terminal_table(experiment.evaluate(config)))
    return
  processes.by_the_first(lambda: _study(config))


def _study(config) -> None:
  found = experiment.study(config, _STUDY.value, _SAE.value)
  for name, result in found["results"].items():
    print(f"\n{name} ({found['seconds'][name]:.0f} s)")
    for finding in result["findings"]:
      print(f"  {finding['verdict']:15} {finding['claim']}")
      print(f"  {'':15} {finding['seen']}")
  for name, why in found["left_out"].items():
    print(f"\n{name} was left out: {why}")
  print(f"\nLook: {found['page']}")


if __name__ == "__main__":
  _binary.run(main, together=True)

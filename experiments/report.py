"""Results -> one page, figures and tables.

python -m experiments.report --config=configs/quickstart.py

While training goes on, or before an evaluation: its curves, --training_only.
"""

from absl import flags

from experiments import _binary
from gemmascope_jax import experiment

_TRAINING_ONLY = flags.DEFINE_bool(
  "training_only", False, "Draw the curves of training; needs no evaluation."
)


def main(config) -> None:
  """Writes the report and prints where it lies."""
  for path in experiment.make_report(config, _TRAINING_ONLY.value).values():
    print(path)


if __name__ == "__main__":
  _binary.run(main)

"""SAEs -> delta loss, FVU and L0 beside baselines, and named releases.

python -m experiments.evaluate --config=configs/quickstart.py
"""

from experiments import _binary
from gemmascope_jax import experiment, report


def main(config) -> None:
  """Evaluates and prints the table."""
  print(report.terminal_table(experiment.evaluate(config)))


if __name__ == "__main__":
  _binary.run(main)

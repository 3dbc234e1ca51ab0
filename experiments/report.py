"""Results -> one page, figures and tables.

python -m experiments.report --config=configs/quickstart.py
"""

from experiments import _binary
from gemmascope_jax import experiment


def main(config) -> None:
  """Writes the report and prints where it lies."""
  for path in experiment.make_report(config).values():
    print(path)


if __name__ == "__main__":
  _binary.run(main)

"""Activations -> a sweep of SAEs.

python -m experiments.train --config=configs/quickstart.py
"""

from experiments import _binary
from gemmascope_jax import experiment


def main(config) -> None:
  """Trains and prints where the finished SAEs are."""
  for folder in experiment.train(config):
    print(folder)


if __name__ == "__main__":
  _binary.run(main, together=True)

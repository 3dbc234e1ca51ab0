"""Text -> activations on disk.

python -m experiments.harvest --config=configs/quickstart.py
"""

from experiments import _binary
from gemmascope_jax import experiment


def main(config) -> None:
  """Harvests and prints what the store holds."""
  print(experiment.harvest(config).describe())


if __name__ == "__main__":
  _binary.run(main, together=True)

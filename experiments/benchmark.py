"""Speed, always as a ratio against a named rival measured in the same run.

python -m experiments.benchmark forward
python -m experiments.benchmark store
python -m experiments.benchmark train_step
"""

from absl import app

from experiments.benchmarks import forward, store, train_step

BENCHMARKS = {
  "forward": forward.main,
  "store": store.main,
  "train_step": train_step.main,
}


def main(argv) -> None:
  """Runs the benchmark that is named."""
  if len(argv) != 2 or argv[1] not in BENCHMARKS:
    raise app.UsageError(f"name one benchmark: {', '.join(BENCHMARKS)}")
  BENCHMARKS[argv[1]]()


if __name__ == "__main__":
  app.run(main)

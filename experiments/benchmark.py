"""Speed and quality, against named rivals measured in the same run.

python -m experiments.benchmark forward
python -m experiments.benchmark evaluate
python -m experiments.benchmark large
python -m experiments.benchmark store
python -m experiments.benchmark serve_trainers
python -m experiments.benchmark train_step
python -m experiments.benchmark train_scaling
python -m experiments.benchmark train_sweep
python -m experiments.benchmark train_quality
python -m experiments.benchmark train_precision
python -m experiments.benchmark synthetic
"""

from absl import app, logging

from experiments.benchmarks import (
  evaluate_pass,
  forward,
  large,
  serve_trainers,
  store,
  synthetic,
  train_precision,
  train_quality,
  train_scaling,
  train_step,
  train_sweep,
)

BENCHMARKS = {
  "forward": forward.main,
  "evaluate": evaluate_pass.main,
  "large": large.main,
  "store": store.main,
  "serve_trainers": serve_trainers.main,
  "train_step": train_step.main,
  "train_scaling": train_scaling.main,
  "train_sweep": train_sweep.main,
  "train_quality": train_quality.main,
  "train_precision": train_precision.main,
  "synthetic": synthetic.main,
}


def main(argv) -> None:
  """Runs the benchmark that is named."""
  if len(argv) != 2 or argv[1] not in BENCHMARKS:
    raise app.UsageError(f"name one benchmark: {', '.join(BENCHMARKS)}")
  logging.set_verbosity(logging.WARNING)  # Orbax tells all it does
  BENCHMARKS[argv[1]]()


if __name__ == "__main__":
  app.run(main)

"""Dialogues -> a base model that keeps to a chat's format, as a delta.

python -m experiments.finetune

Killed or stopped, the same command goes on. The model is then

    lm = gs.gemma.load("demo")
    tuned = finetune.apply(lm, "runs/finetune")
"""

from experiments import _binary
from gemmascope_jax.experiment import finetuning
from gemmascope_jax.studies.estimate import Estimate


def main(config) -> None:
  """Fine-tunes, and prints the held-out loss before and after."""
  result = finetuning.tune(config)
  print(result["label"])
  print(
    f"{result['tokens']['read']:,} tokens read, {result['tokens']['learned']:,}"
    " of them the model's turns; held-out loss of such, nats a token:"
  )
  for name in ("before", "after"):
    print(f"  {name:8} {Estimate(**result[f'loss_{name}'])} conversations")
  print(f"  {'change':8} {Estimate(**result['difference'])}, paired")


if __name__ == "__main__":
  _binary.run(main, default="configs/finetune.py")

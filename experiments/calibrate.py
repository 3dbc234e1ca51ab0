"""Which lambdas give the L0s that you want, by short runs on the same stream.

python -m experiments.calibrate --config=configs/quickstart.py --l0=20,50,100

Prints the setting to train with, without L0s that no run came near;
`--write=FILE` writes it to a file, for

python -m experiments.train --config=configs/quickstart.py --flagfile=FILE
"""

from absl import flags

from experiments import _binary
from gemmascope_jax import artifacts, experiment

_L0 = flags.DEFINE_list("l0", None, "Wanted L0s: 20,50,100.", required=True)
_STEPS = flags.DEFINE_integer(
  "steps",
  1_000,
  "Of each short run. The longer, the better its L0 is that of a long one.",
  lower_bound=8,
)
_WRITE = flags.DEFINE_string("write", None, "File to write the setting to.")


def main(config) -> None:
  """Searches, and prints a line a wanted L0 and the setting."""
  wanted = _wanted(_L0.value)
  found = experiment.calibrate(config, wanted, _STEPS.value)
  print(f"{'L0':>8}  {'lambda':>10}  one standard error")
  for each in found:
    print(
      f"{each.l0:>8g}  {each.sparsity_coefficient:>10.3g}"
      f"  {each.low:.3g} to {each.high:.3g}"
      + (_beyond(each) if each.extrapolated else "")
    )
  sure = [each for each in found if not each.extrapolated]
  if not sure:
    least, most = found[0].reached
    raise ValueError(
      f"no run came near a wanted L0: they gave {least:.4g} to {most:.4g}. Want"
      " some among these, or choose other --steps"
    )
  values = ",".join(f"{each.sparsity_coefficient:.3g}" for each in sure)
  setting = f"--config.train.sparsity_coefficients=({values},)"
  flag, _, value = setting.partition("=")
  guesses = ", ".join(f"{each.l0:g}" for each in found if each.extrapolated)
  without = f" (without the guess for L0 {guesses})" if guesses else ""
  print(f"\n{flag}='{value}'{without}")
  if _WRITE.value:
    artifacts.write_text(_WRITE.value, setting + "\n")


def _wanted(texts: list[str]) -> list[float]:
  """Numbers of --l0."""
  try:
    found = [float(text) for text in texts]
  except ValueError:
    found = []
  if not found:
    raise ValueError(
      f"--l0 is {','.join(texts)!r}; expected numbers with commas, as 20,50"
    )
  return found


def _beyond(found) -> str:
  """What to do about an L0 that no run came near."""
  least, most = found.reached
  return (
    f"; a guess: runs gave L0s of {least:.3g} to {most:.3g} only"
    " (other --steps, or a wanted L0 among these)"
  )


if __name__ == "__main__":
  _binary.run(main)

"""harvest, train, evaluate, report in a row, on a laptop.

python -m experiments.quickstart
"""

import pathlib
import time

from experiments import _binary
from gemmascope_jax import experiment, report
from gemmascope_jax.parallel import processes

_STAGES = (
  ("harvest", experiment.harvest),
  ("train", experiment.train),
  ("evaluate", experiment.evaluate),
  (
    "report",
    lambda config: processes.by_the_first(
      lambda: experiment.make_report(config)
    ),
  ),
)


def main(config) -> None:
  """Runs the four stages; says what took how long and where things lie."""
  experiment.check(config)
  results, seconds = {}, {}
  for number, (name, stage) in enumerate(_STAGES, start=1):
    print(f"\n[{number}/{len(_STAGES)}] {name}", flush=True)
    start = time.monotonic()
    results[name] = stage(config)
    seconds[name] = time.monotonic() - start
  workdir = pathlib.Path(config.workdir)
  spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
  print()
  print(report.terminal_table(results["evaluate"]))
  print(f"""
Time: {spent}

Look:   {workdir / "report" / "index.html"} (open it in a browser)
        {workdir / "report" / "sparsity_fidelity.png"}
SAEs:   {workdir / "releases"} (Gemma Scope's params.npz)
Next:   another sparsity    --config.train.sparsity_coefficients='(2e-4,)'
        another site        --config.harvest.sites='("mlp.5",)' \\
                            --config.train.site=mlp.5
        more tokens         --config.harvest.rows=2000000 \\
                            --config.train.tokens=2000000
        each with --config.workdir=runs/NAME; in Python:
        gs.sae.load("{results["train"][0]}")""")


if __name__ == "__main__":
  _binary.run(main, default="configs/quickstart.py", together=True)

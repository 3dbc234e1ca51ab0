"""Which latents go on from layer to layer: SAEs of a few residual sites.

python -m experiments.persistent --sae=PATH --sae=PATH --store=runs/zoo/store/NAME

Writes persistent.json, persistent.png and partners.npz to --out, and prints the
shares. Without --store latents are matched by their decoders alone.
"""

import pathlib
import sys

from absl import app, flags, logging

from gemmascope_jax import artifacts
from gemmascope_jax.circuits import persistence
from gemmascope_jax.data.stores import store
from gemmascope_jax.report import plotting
from gemmascope_jax.report.study_figures import persistent as figure
from gemmascope_jax.studies import subjects

_SAE = flags.DEFINE_multi_string(
  "sae", None, "SAEs, one a layer, as PATH; several times.", required=True
)
_STORE = flags.DEFINE_string("store", None, "Store of all their sites.")
_ROWS = flags.DEFINE_integer("rows", 50_000, "Rows to look at.", lower_bound=1)
_ALPHA = flags.DEFINE_float("alpha", 0.01, "Share that may match by chance.")
_SAME = flags.DEFINE_bool(
  "same_number", False, "Count pairs of the same number; of unlike seeds only."
)
_OUT = flags.DEFINE_string("out", "runs/persistent", "Folder to write to.")


def main(argv: list[str]) -> None:
  """Matches, writes and prints."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  out = pathlib.Path(_OUT.value)
  try:
    read = [subjects.read(each) for each in _SAE.value]
    result = persistence.run(
      {each.reads: each.sae for each in read},
      store.Store.open(_STORE.value) if _STORE.value else None,
      rows=_ROWS.value,
      alpha=_ALPHA.value,
      same_number=_SAME.value,
      path=out / "partners.npz",
    )
    with plotting.style():
      drawn = plotting.png(figure.draw(result)["persistent"])
  except (ValueError, OSError, ImportError) as error:
    sys.exit(f"error: {error}")  # they explain themselves
  artifacts.write_json(out / "persistent.json", result)
  artifacts.write_bytes(out / "persistent.png", drawn)
  for step in result["steps"]:
    for name, share in step["shares"].items():
      print(
        f"{step['first']} to {step['second']}, {name:9}"
        f" {share['mean']:.3f} ± {share['stderr'] or 0:.3f},"
        f" by chance {step['false'][name]['mean']:.3f}"
      )
  print(f"\nLook: {out / 'persistent.png'}")


if __name__ == "__main__":
  app.run(main)

"""Which latents make the model say what it says at one prompt.

python -m experiments.circuit --lm=demo --sae=PATH --sae=PATH \\
  --clean="The girls near the house" --patch="The girl near the house" \\
  --answer=" are" --wrong=" is"

Prints a table, and writes it to --out with the result (circuit.json), a figure
(circuit.png) and the graph for circuit viewers (graphs/SLUG.json).
docs/attribution.md says what the numbers are.
"""

import sys

from absl import app, flags, logging

from gemmascope_jax import gemma
from gemmascope_jax.experiment import circuit
from gemmascope_jax.report import circuit_table

_LM = flags.DEFINE_string("lm", "demo", "Language model, see gemma.load.")
_SAE = flags.DEFINE_multi_string(
  "sae",
  None,
  "SAEs, one a site, as PATH or SITE=PATH; may be given several times.",
  required=True,
)
_CLEAN = flags.DEFINE_string("clean", None, "The prompt.", required=True)
_PATCH = flags.DEFINE_string(
  "patch", None, "Prompt of as many tokens to compare; none: zero baseline."
)
_ANSWER = flags.DEFINE_string(
  "answer", None, "One token that follows, as ' are'.", required=True
)
_WRONG = flags.DEFINE_string(
  "wrong", None, "Token whose logit is subtracted; none: nothing is."
)
_OUT = flags.DEFINE_string("out", "runs/circuit", "Folder to write to.")
_SLUG = flags.DEFINE_string("slug", "circuit", "Name of the graph in viewers.")
_NODES = flags.DEFINE_integer("nodes", 60, "Nodes to keep.", lower_bound=1)
_EDGES = flags.DEFINE_integer(
  "edges", 300, "Edges to keep; 0: look for none.", lower_bound=0
)
_STEPS = flags.DEFINE_integer(
  "steps",
  10,
  "Of integrated gradients; 0: gradients at the clean prompt.",
  lower_bound=0,
)


def main(argv: list[str]) -> None:
  """Finds, writes and prints."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  try:
    found = circuit.circuit(
      gemma.load(_LM.value),
      _SAE.value,
      _CLEAN.value,
      _PATCH.value,
      _ANSWER.value,
      _WRONG.value,
      _OUT.value,
      slug=_SLUG.value,
      nodes=_NODES.value,
      edges=_EDGES.value,
      steps=_STEPS.value,
    )
  except (ValueError, OSError, ImportError, FloatingPointError) as error:
    sys.exit(f"error: {error}")  # they explain themselves
  print(circuit_table.table(found))
  print(f"\nLook: {_OUT.value}/{circuit.FIGURE}")


if __name__ == "__main__":
  app.run(main)

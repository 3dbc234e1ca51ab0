"""An SAE -> pages about its latents, for a browser.

python -m experiments.dashboard --run=runs/quickstart \\
  --sae=runs/quickstart/train/saes/NAME --out=runs/dashboard
python -m experiments.dashboard --sae=PATH --lm=google/gemma-2-2b \\
  --data=hf:NAME --rows=500000 --out=runs/dashboard
python -m experiments.dashboard --live=runs/dashboard --sae=PATH

The first uses the activations of a run, the second harvests its own (and keeps
them below --workdir). The folder works from a disk and from any web server.
--live serves one on this machine, with the model behind it for sentences that
are typed in. docs/dashboards.md says more, and of --export.
"""

import pathlib

from absl import flags

from configs import default, quickstart
from experiments import _binary
from gemmascope_jax.dashboards import export, live, site
from gemmascope_jax.experiment import activations, dashboard, stored_config

_SAE = flags.DEFINE_string("sae", "", "The SAE: PATH, or SITE=PATH.")
_RUN = flags.DEFINE_string("run", "", "A run whose activations are used.")
_LM = flags.DEFINE_string("lm", "", "The model's source; default: demo.")
_DATA = flags.DEFINE_list("data", [], "Texts to harvest on.")
_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/dashboard_work", "Without --run: for what is harvested."
)
_OUT = flags.DEFINE_string("out", "", "Folder to write to.")
_LATENTS = flags.DEFINE_string(
  "latents", "500", "How many; which, as 3,17,200; or all."
)
_CONTEXTS = flags.DEFINE_integer("contexts", 12, "Top contexts of each.")
_CONTEXT_TOKENS = flags.DEFINE_integer("context_tokens", 32, "Of a context.")
_ROWS = flags.DEFINE_integer("rows", None, "Activations; default: all.")
_EXPLANATIONS = flags.DEFINE_string(
  "explanations", "", "Result of the study interpretability."
)
_VIEWER = flags.DEFINE_string(
  "viewer", "", "Address of a latent in a public viewer, {} for its number."
)
_LIVE = flags.DEFINE_string("live", "", "Folder of pages to serve.")
_PORT = flags.DEFINE_integer("port", 8800, "live: where to listen.")
_EXPORT = flags.DEFINE_enum(
  "export", None, export.FORMATS, "Write --out for another viewer instead."
)
_MODEL_ID = flags.DEFINE_string(
  "model_id", "", "export: Neuronpedia's name of the model."
)
_SAE_SET = flags.DEFINE_string("sae_set", "", "export: its name of the set.")


def main(config, arguments) -> None:
  """Makes, serves or exports."""
  if arguments:
    raise ValueError(f"{' '.join(arguments)}: expected flags only")
  if not _SAE.value:
    raise ValueError("expected --sae=PATH")
  _refuse_unused()
  config = _config(config)
  if _LIVE.value:
    site.read_index(_LIVE.value)
    reader = dashboard.reader(config, _SAE.value, _LIVE.value)
    live.serve(_LIVE.value, reader, _PORT.value)
    return
  if not _OUT.value:
    raise ValueError("expected --out=FOLDER to write to")
  if _EXPORT.value:
    files = dashboard.write_export(
      config,
      _SAE.value,
      _OUT.value,
      _EXPORT.value,
      latents=dashboard.parse_latents(_LATENTS.value),
      contexts=_CONTEXTS.value,
      context_tokens=_CONTEXT_TOKENS.value,
      rows=_ROWS.value,
      model_id=_MODEL_ID.value,
      sae_set=_SAE_SET.value,
    )
    print(f"\nWritten: {', '.join(map(str, files))}")
    return
  page = dashboard.build(
    config,
    _SAE.value,
    _OUT.value,
    latents=dashboard.parse_latents(_LATENTS.value),
    contexts=_CONTEXTS.value,
    context_tokens=_CONTEXT_TOKENS.value,
    rows=_ROWS.value,
    explanations=_EXPLANATIONS.value or None,
    viewer=_VIEWER.value or None,
  )
  print(f"\nLook: {page}")


def _refuse_unused() -> None:
  """Names a flag that would do nothing."""
  of_pages = (_EXPLANATIONS, _VIEWER)
  of_export = (_MODEL_ID, _SAE_SET)
  if _LIVE.value:
    counts = (_LATENTS, _CONTEXTS, _CONTEXT_TOKENS, _ROWS)
    others = (_OUT, *counts, *of_pages, _EXPORT, *of_export)
    _binary.refuse("with --live", *others)
    return
  _binary.refuse("without --live", _PORT)
  if _EXPORT.value:
    _binary.refuse("with --export", *of_pages)
  else:
    _binary.refuse("without --export", *of_export)


def _config(config):
  """The run's, the one that was given, or the quickstart's."""
  if _RUN.value:
    of_a_harvest = (_LM, _DATA, _WORKDIR)
    given = [flag.name for flag in of_a_harvest if flag.value != flag.default]
    given += ["config"] if config is not None else []
    if given:
      raise ValueError(
        f"--run and --{given[0]}: expected one of them; the model and the texts"
        " are those of the run"
      )
    found = stored_config.read(_RUN.value, default.get_config())
    found.workdir = str(pathlib.Path(_RUN.value))
    activations.open_rows(found)  # nothing is harvested into a run
    return found
  if config is None:
    config = quickstart.get_config()
    config.workdir = _WORKDIR.value
    config.evaluate.stride = 1
  with config.unlocked():
    config.lm.source = _LM.value or config.lm.source
    if _DATA.value:
      config.data.sources = tuple(_DATA.value)
    if _ROWS.value:
      config.harvest.rows = _ROWS.value
  return config


if __name__ == "__main__":
  _binary.run_commands(main)

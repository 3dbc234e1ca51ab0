"""Several runs of one config, such as one for each site.

`config.runs` names them and says what differs; each has a folder of its own
below the work directory. Runs whose activations are those of the config itself
share its store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from gemmascope_jax.experiment import overrides
from gemmascope_jax.experiment.settings import Config

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
# Folders of the work directory itself.
_TAKEN = ("store", "tokens", "live", "train", "results", "releases", "report")


def runs(config: Config) -> dict[str, Config]:
  """A whole config for each run, by name; {"": config} if it names none.

  Raises:
    ValueError: no config of SAEs; a run without a name of its own that can be a
      folder's, or with a setting that does not exist or has another type.
  """
  if "runs" not in config:
    raise ValueError(
      "this is no config of SAEs: expected one with all that configs/default.py"
      " has"
    )
  if not config.runs:
    return {"": config}
  found: dict[str, Config] = {}
  for number, differs in enumerate(config.runs):
    where = f"runs[{number}] is {differs!r}"
    if not isinstance(differs, (Mapping, Config)):
      raise ValueError(
        f'{where}; expected settings, as {{"name": "mlp", "train.site":'
        ' "mlp.5"}, and a comma after the last one'
      )
    values = dict(differs)
    name = values.pop("name", "")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
      raise ValueError(
        f'{where}: expected a "name" of letters, digits, ".", "_" or "-", for'
        " its folder"
      )
    if name in found or name in _TAKEN:
      raise ValueError(f"{where}: the name is taken; choose another")
    if {"runs", "workdir"} & {key.split(".")[0] for key in values}:
      raise ValueError(f"{where}: a run can't set runs or workdir")
    one = config.copy_and_resolve_references()
    one.runs = ()
    overrides.override(one, values, where)
    one.workdir = f"{config.workdir}/{name}"
    found[name] = one
  return found

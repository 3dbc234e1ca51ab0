"""Sites: the named places in the model that are read and edited.

Named as the paper's releases are (paper, 3.2); layers count from 0:

* `res.L`: the residual stream after block L, width D;
* `mlp.L`: the MLP's output after its post-norm, which is what is added to the
  residual stream, width D;
* `att.L`: the heads' outputs side by side, before W_O, width N * H;
* `mlp_in.L`: the MLP's input, normalised but without the norm's gain, width D:
  what a transcoder reads (paper, 8).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from gemmascope_jax.gemma.config import GemmaConfig

KINDS = ("res", "mlp", "att", "mlp_in")

_NAME = re.compile(r"(?P<kind>[a-z_]+)\.(?P<layer>0|[1-9][0-9]*)")


class Site(NamedTuple):
  """One site: its kind (one of `KINDS`) and its layer, counted from 0."""

  kind: str
  layer: int

  def __str__(self) -> str:
    return f"{self.kind}.{self.layer}"


def parse(name: str | Site) -> Site:
  """Reads a site's name.

  Args:
    name: such as "res.12", or a `Site`, which is returned as it is.

  Returns:
    The site.

  Raises:
    ValueError: the name is not a kind of `KINDS`, a dot and a layer.
  """
  if isinstance(name, Site):
    return name
  match = _NAME.fullmatch(name)
  if match is None or match["kind"] not in KINDS:
    raise ValueError(
      f"site {name!r}: expected KIND.LAYER with KIND one of"
      f" {', '.join(KINDS)} and LAYER counted from 0, such as 'res.12'"
    )
  return Site(match["kind"], int(match["layer"]))


def check(config: GemmaConfig, site: str | Site) -> Site:
  """Returns the parsed site; raises `ValueError` if the model lacks it."""
  site = parse(site)
  if not 0 <= site.layer < config.num_layers:
    raise ValueError(
      f"site {site}: {config.name} has layers 0..{config.num_layers - 1}"
    )
  return site


def site_width(config: GemmaConfig, site: str | Site) -> int:
  """Width of the activation at a site: D, or heads x head width for `att`."""
  if check(config, site).kind == "att":
    return config.num_heads * config.head_dim
  return config.width


def layers_needed(config: GemmaConfig, sites: Iterable[str | Site]) -> int:
  """How many layers must run to reach all the sites: last layer + 1, or 0.

  Give it to `forward` (and to `load`) as `num_layers`.
  """
  return max((check(config, site).layer + 1 for site in sites), default=0)

"""Which activations the groups of a sweep need, and who shares a harvest."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence, Set
from typing import Any

from gemmascope_jax.experiment import settings
from launch.sweeps.grid import Overrides
from launch.sweeps.reading import Config


@dataclasses.dataclass(frozen=True, eq=False)
class Harvest:
  """One pass of a model over text.

  Attributes:
    name: of its folder.
    sites: that it writes.
    rows: of each site.
    overrides: of the sweep's config, by dotted name, that make it this one.
  """

  name: str
  sites: tuple[str, ...]
  rows: int
  overrides: Overrides

  def folder(self, root: str) -> pathlib.Path:
    """Its work directory below that of the sweep; the rows are in stores/."""
    return pathlib.Path(root) / "harvests" / self.name

  def serves(self, changed: Overrides, sites: Set[str], rows: int) -> bool:
    """Whether it has these sites' rows, of a model and text so changed."""
    own = {**self.overrides}
    del own["harvest.sites"], own["harvest.rows"]
    return own == changed and sites <= set(self.sites) and rows == self.rows


def share(
  configs: Sequence[Config], base: Config, kept: Sequence[Harvest] = ()
) -> list[Harvest | None]:
  """The harvest of each config.

  A site is harvested once for all configs that agree in model, text and form of
  the store, with the rows of the one that wants most; sites that a config reads
  together (a transcoder's, a crosscoder's) are in one store. Those with equally
  many rows are written by one pass.

  Args:
    configs: one for each run.
    base: that they override.
    kept: harvests that a smaller sweep has made: a site is not harvested again
      because other sites came.

  Returns:
    One for each config, in order; None where it names a source of its own.
  """
  own = _content(base)
  changes = [
    {k: v for k, v in _content(config).items() if v != own[k]}
    for config in configs
  ]
  needs = [
    None
    if config.data.source
    else (str(changed), settings.trained_sites(config))
    for config, changed in zip(configs, changes, strict=True)
  ]
  joined = _joined([need for need in needs if need is not None])
  most: dict[tuple[str, frozenset[str]], int] = {}
  for config, need in zip(configs, needs, strict=True):
    if need is not None:
      key = need[0], joined[need[0], need[1][0]]
      most[key] = max(most.get(key, 0), config.harvest.rows)
  passes: dict[tuple[str, int], set[str]] = {}
  for (content, sites), rows in most.items():
    passes.setdefault((content, rows), set()).update(sites)
  made: dict[tuple[str, int], Harvest] = {}
  found: list[Harvest | None] = []
  for changed, need in zip(changes, needs, strict=True):
    if need is None:
      found.append(None)
      continue
    content, sites = need[0], joined[need[0], need[1][0]]
    rows = most[content, sites]
    there = [each for each in kept if each.serves(changed, sites, rows)]
    if there:
      found.append(there[0])
      continue
    key = content, rows
    if key not in made:
      old = {
        x
        for each in kept
        if each.serves(changed, set(), rows)
        for x in each.sites
      }
      made[key] = _harvest(changed, passes[key] - old, rows)
    found.append(made[key])
  return found


def _joined(
  needs: Sequence[tuple[str, tuple[str, ...]]],
) -> dict[tuple[str, str], frozenset[str]]:
  """The sites that have to be in one store with a site, by content and site."""
  found: dict[tuple[str, str], frozenset[str]] = {}
  for content, sites in needs:
    together = frozenset(sites).union(
      *(found.get((content, site), frozenset()) for site in sites)
    )
    found |= {(content, site): together for site in together}
  return found


def _content(config: Config) -> dict[str, Any]:
  """What decides a store's rows, but for how many of which sites."""
  parts = {
    "lm": config.lm.to_dict(),
    "data": config.data.to_dict(),
    "harvest": config.harvest.to_dict(),
  }
  left_out = {"data": ("source", "source_timeout", "source_ca")}
  left_out["harvest"] = ("sites", "rows", "root", "part", "parts")
  return {
    f"{section}.{name}": value
    for section, values in parts.items()
    for name, value in values.items()
    if name not in left_out.get(section, ())
  }


def _harvest(changed: Overrides, sites: set[str], rows: int) -> Harvest:
  ordered = tuple(sorted(sites, key=_place))
  overrides = changed | {"harvest.sites": ordered, "harvest.rows": rows}
  digest = hashlib.sha256(str(sorted(overrides.items())).encode()).hexdigest()
  name = f"{len(ordered)}_sites_{rows}_rows_{digest[:6]}"
  return Harvest(name, ordered, rows, overrides)


def _place(site: str) -> tuple[int, str]:
  kind, _, layer = site.partition(".")
  return int(layer), kind

"""Which SAEs Gemma Scope 1 holds, and which of them to take.

A repository has several SAEs for a layer and width, one for each average L0.
The canonical one, which the field compares, is that whose L0 is nearest 100. The
list marks them, as SAELens does: twice two are equally near, and once the larger
L0 is canonical, once the smaller.

The list is a file of this package, so nothing is fetched. It is complete but
for the transcoders, of which it has one a layer, the one that Neuronpedia
shows.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import re
from collections.abc import Iterable

from gemmascope_jax.releases import names
from gemmascope_jax.releases.names import Name
from gemmascope_jax.sae.sae import SAEConfig

CANONICAL_L0 = 100
_FILE = "gemma_scope_1.txt"
_WIDTH = re.compile(r"(\d+[km])\[([\d* ]+)\]")


@functools.cache
def repos() -> tuple[str, ...]:
  """The repositories that the catalogue knows."""
  return tuple(_read())


def find(
  repo: str,
  layer: int | None = None,
  width: str | None = None,
) -> tuple[Name, ...]:
  """The SAEs of a repository.

  Args:
    repo: such as "google/gemma-scope-2b-pt-res".
    layer: only of this one; None: all, and embedding SAEs.
    width: only of this one, such as "16k".

  Returns:
    Their names, by layer, width and L0.

  Raises:
    ValueError: a repository that is not in the catalogue.
  """
  return tuple(
    name
    for name, _ in _entries(repo)
    if (layer is None or name.layers == (layer,))
    and (width is None or name.width == width)
  )


def nearest(candidates: Iterable[Name], l0: float = CANONICAL_L0) -> Name:
  """The one whose average L0 is nearest; of two, the one with the larger.

  Args:
    candidates: of one layer and width, with a measured L0 each.
    l0: sought.

  Raises:
    ValueError: no candidates.
  """
  candidates = list(candidates)
  if not candidates:
    raise ValueError("no SAE to choose from: no such layer or width")
  return min(candidates, key=lambda name: (abs(name.l0 - l0), -name.l0))


def resolve(name: Name) -> Name:
  """What `canonical` stands for; any other name is returned as it is.

  Raises:
    ValueError: nothing of that layer and width is in the catalogue.
  """
  if name.l0 != names.CANONICAL:
    return name
  there = {
    other: marked
    for other, marked in _entries(name.repo)
    if (other.layers, other.width) == (name.layers, name.width)
  }
  if not there:
    raise ValueError(
      f"{name}: {name.repo} has no SAE of that layer and width; it has"
      f" {held(name.repo)}"
    )
  return nearest([one for one in there if there[one]] or there)


def is_canonical(name: Name) -> bool:
  """Whether it is the canonical one of its layer and width."""
  if name.repo not in repos() or name not in find(name.repo):
    return False
  return resolve(dataclasses.replace(name, l0=names.CANONICAL)) == name


def viewer(sae_config: SAEConfig) -> str | None:
  """The address of each latent's public page, "{}" in the latent's place.

  Args:
    sae_config: of an SAE that was loaded from a release by Google, whose name
      its provenance tells.

  Returns:
    An address on Neuronpedia; None if the SAE was not released there: of Gemma
    Scope 1 only canonical ones surely are, of Gemma Scope 2 those that
    `names.neuronpedia` tells.
  """
  released_as = sae_config.details().get("about", {}).get("released_as")
  if released_as is None:
    return None
  name = names.parse(released_as)
  if name.scope == 1:
    if not is_canonical(name):
      return None
    name = dataclasses.replace(name, l0=names.CANONICAL)
  place = names.neuronpedia(name)
  return None if place is None else f"https://www.neuronpedia.org/{place}/{{}}"


def held(repo: str) -> str:
  """A line about a repository: "16k on layers 0..25; 65k on layers 0..25"."""
  layers: dict[str, set[int | None]] = {}
  for name in find(repo):
    place = name.layers[0] if name.layers else None
    layers.setdefault(name.width, set()).add(place)
  return "; ".join(f"{w} on {_spans(there)}" for w, there in layers.items())


def _spans(layers: set[int | None]) -> str:
  """ "layers 0..25", or "layers 5, 12, 19", or "the embedding"."""
  numbers = sorted(layer for layer in layers if layer is not None)
  if not numbers:
    return "the embedding"
  if len(numbers) == 1:
    return f"layer {numbers[0]}"
  if numbers == list(range(numbers[0], numbers[-1] + 1)):
    return f"layers {numbers[0]}..{numbers[-1]}"
  return f"layers {', '.join(map(str, numbers))}"


def _entries(repo: str) -> tuple[tuple[Name, bool], ...]:
  if repo not in _read():
    raise ValueError(
      f"{repo!r} is not in the catalogue; there are {', '.join(repos())}"
    )
  return _read()[repo]


@functools.cache
def _read() -> dict[str, tuple[tuple[Name, bool], ...]]:
  """(name, whether it is marked canonical), by repository."""
  text = (
    importlib.resources.files(__package__)
    .joinpath(_FILE)
    .read_text(encoding="utf-8")
  )
  found: dict[str, list[tuple[Name, bool]]] = {}
  for line in text.splitlines():
    if line.startswith("google/"):
      entries = found.setdefault(line, [])
    elif line and not line.startswith("#"):
      place, _, widths = line.partition(": ")
      folder = names.EMBEDDING if place == "emb" else f"layer_{place}"
      for width, l0s in _WIDTH.findall(widths):
        for l0 in l0s.split():
          number = l0.rstrip("*")
          path = f"{folder}/width_{width}/average_l0_{number}"
          name = names.parse(f"{list(found)[-1]}/{path}")
          entries.append((name, l0.endswith("*")))
  return {repo: tuple(entries) for repo, entries in found.items()}

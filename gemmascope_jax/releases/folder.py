"""A release: a folder of SAEs that says what it holds, file by file.

    layer_5/width_4k/average_l0_43/   below one folder a kind of site, res/ ...,
                                      where there are several
      params.npz, sae.json            the weights, as their format has them
      per_sequence.json               what was measured of each sequence
      card.json                       what the SAE is and does; see `card`
    README.md                         made from the cards
    index.json                        SHA-256 of every other file

`index.json` is written last: a folder with `unfinished.json` and without it is
one whose making was cut short, and goes on with the same command. What a
release is made of is never executed, and no path in it is followed out of it.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gemmascope_jax import artifacts
from gemmascope_jax.gemma import sites
from gemmascope_jax.releases import gemma_scope

WHAT, FORMAT = "gemmascope_jax release", 1
INDEX = "index.json"
README = "README.md"
CARD = "card.json"
SEQUENCES = "per_sequence.json"
UNFINISHED = "unfinished.json"
LOCK = ".writing.lock"
_ASIDE = ".incomplete"  # of a write that was killed; see `artifacts`


class ReleaseError(ValueError):
  """A folder is no release, or not a whole one."""


def places(
  named: Sequence[tuple[str, str | None, int, float]],
) -> list[str]:
  """The folder of each SAE below a release's root.

  `layer_{L}/width_{W}/average_l0_{N}`, below `res`, `mlp`, `att`, `mlp_in` or
  `transcoders` where there are several kinds of sites. Of SAEs with the same
  layer, width and rounded L0 the one with the smallest L0 is there, and the
  next ones are below `res-2`, `res-3`, ...; of equal L0s the earlier comes
  first. So whatever reads the released names can read these.

  Args:
    named: (site, target site or None, width, measured L0) of each, in order.
  """
  kinds = [
    "transcoders" if target else sites.parse(site).kind
    for site, target, _, _ in named
  ]
  found: dict[int, str] = {}
  for index in sorted(range(len(named)), key=lambda i: named[i][3]):
    site, target, width, l0 = named[index]
    layer = sites.parse(target or site).layer
    name = gemma_scope.folder_name(layer, width, l0)
    number, one = 1, f"{kinds[index]}/{name}"
    while one in found.values():
      number += 1
      one = f"{kinds[index]}-{number}/{name}"
    found[index] = one
  if len({one.partition("/")[0] for one in found.values()}) == 1:
    found = {i: one.partition("/")[2] for i, one in found.items()}
  return [found[index] for index in range(len(named))]


def inside(root: pathlib.Path, name: Any) -> pathlib.Path:
  """The path of a file that a release names.

  Raises:
    ReleaseError: it is not below the release, whatever links do.
  """
  parts = name.split("/") if isinstance(name, str) else []
  plain = parts and not any(
    part in ("", ".", "..") or re.search(r"[\\:\x00-\x1f]", part)
    for part in parts
  )
  path = root.joinpath(*parts) if plain else root
  base = root.resolve()
  if base.parent.name == "snapshots":  # the Hub's cache links to its blobs
    base = base.parent.parent
  if not plain or not path.resolve().is_relative_to(base):
    raise ReleaseError(
      f"{root / INDEX} names {name!r}: a path outside the folder, which no"
      " release does; don't trust it, and fetch it again from where it is known"
      " to be right"
    )
  return path


def check_target(
  root: str | os.PathLike,
  weights: Iterable[str] | None = None,
  about: Mapping[str, Any] | None = None,
) -> None:
  """Refuses to write a release over anything else.

  Args:
    root: where it is to be.
    weights: hashes of the weights of its SAEs; None: not known yet.
    about: its "weights_format" and "licence", which the release that is there
      has to have too; None: any.

  Raises:
    ValueError: the folder holds what is not a release's, another's SAEs, or a
      release in another format or under another licence.
  """
  root = pathlib.Path(root)
  if root.exists() and not root.is_dir():
    raise ValueError(f"{root} is a file: expected a new folder for the release")
  held = _held(root)
  if not held:
    return
  planned = _planned(root)
  known = {root / name for name in (README, INDEX, UNFINISHED)}
  if _describes(root / INDEX):
    files = artifacts.read_json(root / INDEX).get("files", {})
    known |= {inside(root, name) for name in files}
  others = [
    path.relative_to(root).as_posix()
    for path in held
    if path not in known and not planned & {*path.parents}
  ]
  is_release = _describes(root / INDEX) or _describes(root / UNFINISHED)
  if others or not is_release:
    names = others or [path.relative_to(root).as_posix() for path in held]
    raise ValueError(
      f"{root} holds something else than a release:"
      f" {', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''};"
      " choose another --out, or move that away"
    )
  for key, value in (about or {}).items():
    for name in (INDEX, UNFINISHED):
      there = (
        artifacts.read_json(root / name) if _describes(root / name) else {}
      )
      if there.get(key, value) != value:
        raise ValueError(
          f"{root} is a release with {_SAID[key]} {there[key] or ''!r}, not"
          f" {value or ''!r}; give it that again, choose another --out, or delete"
          " the folder to make it anew"
        )
  if weights is None:
    return
  wanted = set(weights)
  strange = sorted(
    folder.relative_to(root).as_posix()
    for folder in {path.parent for path in root.rglob(CARD)}
    if _weights_of(folder) not in wanted
  )
  if strange:
    raise ValueError(
      f"{root} is a release that holds SAEs which are not among these:"
      f" {', '.join(strange)}; choose another --out, name them too (--member),"
      " or delete their folders"
    )


_SAID = {"weights_format": "weights in the format", "licence": "licence"}


def begin(
  root: pathlib.Path,
  folders: Sequence[str],
  about: Mapping[str, Any] | None = None,
) -> None:
  """Says that a release is being written, and removes what moved.

  Args:
    root: where.
    folders: of its SAEs.
    about: as for `check_target`, for the command that goes on.
  """
  known = {path.relative_to(root).as_posix() for path in _planned(root)}
  artifacts.write_json(
    root / UNFINISHED,
    {
      "what": WHAT,
      "format": FORMAT,
      "folders": sorted({*known, *folders}),
      **(about or {}),
    },
  )
  cards = {
    path.parent.relative_to(root).as_posix() for path in root.rglob(CARD)
  }
  for name in {*known, *cards} - {*folders}:
    _remove(root, inside(root, name))
  for path in root.rglob(f"*{_ASIDE}"):
    path.unlink()


def finish(root: pathlib.Path, about: Mapping[str, Any]) -> dict[str, Any]:
  """Writes the index of all that is there.

  Args:
    root: the release.
    about: of it as a whole, JSON-ready.

  Returns:
    The index.
  """
  files = {
    path.relative_to(root).as_posix(): describe_file(path)
    for path in _held(root)
    if path.relative_to(root).as_posix() not in (INDEX, UNFINISHED)
  }
  index = {"what": WHAT, "format": FORMAT, **about, "files": files}
  content = artifacts.json_bytes(index)
  if not (root / INDEX).exists() or (root / INDEX).read_bytes() != content:
    artifacts.write_bytes(root / INDEX, content)
  (root / UNFINISHED).unlink(missing_ok=True)
  return index


def describe_file(path: pathlib.Path) -> dict[str, Any]:
  """What the index says of a file."""
  return {
    "sha256": artifacts.sha256_file(path),
    "bytes": path.stat().st_size,
  }


def read_index(root: str | os.PathLike) -> dict[str, Any]:
  """The index of a release; every path in it lies below the release.

  Raises:
    FileNotFoundError: no folder.
    ReleaseError: no release, one that was cut short, one of a newer version, or
      one that names files elsewhere.
  """
  root = pathlib.Path(root)
  if not root.is_dir():
    raise FileNotFoundError(f"no release at {root}: there is no such folder")
  if (root / UNFINISHED).exists():
    raise ReleaseError(
      f"{root} is a release that was cut short while it was written: run the"
      " same `python -m experiments.release` again"
    )
  if not (root / INDEX).exists():
    raise ReleaseError(
      f"{root} has no {INDEX}: not a release of this project, or the file is"
      " missing; fetch the folder again"
    )
  try:
    index = artifacts.read_json(root / INDEX)
  except ValueError as error:
    raise ReleaseError(f"{error}: fetch the folder again") from error
  if not isinstance(index, dict) or index.get("what") != WHAT:
    raise ReleaseError(f"{root / INDEX} is not the index of a release")
  if index.get("format") != FORMAT:
    raise ReleaseError(
      f"{root / INDEX} has format {index.get('format')}, this version reads"
      f" {FORMAT}: update gemmascope_jax"
    )
  lacks = [key for key in _KEYS if not isinstance(index.get(key), _KEYS[key])]
  if lacks:
    raise ReleaseError(
      f"{root / INDEX} lacks {', '.join(lacks)}: fetch the folder again"
    )
  for name in [
    *index["files"],
    *(each.get("folder") for each in index["saes"]),
  ]:
    inside(root, name)
  return index


_KEYS = {"files": dict, "saes": list, "model": dict, "weights_format": str}


def damage(root: pathlib.Path, index: Mapping[str, Any]) -> dict[str, str]:
  """What is wrong with files: {name: why}; empty if all are as indexed."""
  found, hashes = {}, {}
  owner = {each["sha256"]: name for name, each in index["files"].items()}
  for name, each in index["files"].items():
    path = inside(root, name)
    if not path.is_file():
      found[name] = "is missing"
      continue
    hashes[name] = artifacts.sha256_file(path)
    if hashes[name] == each["sha256"]:
      continue
    found[name] = (
      f"holds what {owner[hashes[name]]} should hold: swapped"
      if hashes[name] in owner
      else f"has sha256 {hashes[name][:12]}..., expected"
      f" {each['sha256'][:12]}...: it was changed"
    )
  for path in _files(root):
    name = path.relative_to(root).as_posix()
    if name not in index["files"] and name != INDEX and not _is_tools(name):
      found[name] = "is not in the index: it was added"
  return found


def _files(root: pathlib.Path) -> list[pathlib.Path]:
  """All files below."""
  return sorted(
    path for path in root.rglob("*") if path.is_file() or path.is_symlink()
  )


def _held(root: pathlib.Path) -> list[pathlib.Path]:
  """All files below, but for hidden ones and writes that were killed."""
  return [
    path
    for path in _files(root)
    if not any(part.startswith(".") for part in path.relative_to(root).parts)
    and not path.name.endswith(_ASIDE)
  ]


def _is_tools(name: str) -> bool:
  """Whether git or the Hub's client put a file there."""
  return name == ".gitattributes" or name.startswith(
    (".git/", ".cache/huggingface/")
  )


def _describes(path: pathlib.Path) -> bool:
  try:
    return artifacts.read_json(path).get("what") == WHAT
  except (FileNotFoundError, ValueError, AttributeError):
    return False


def _planned(root: pathlib.Path) -> set[pathlib.Path]:
  """Folders that a release which was cut short was to have."""
  if not _describes(root / UNFINISHED):
    return set()
  named = artifacts.read_json(root / UNFINISHED)["folders"]
  return {inside(root, name) for name in named}


def _weights_of(folder: pathlib.Path) -> str | None:
  try:
    return artifacts.read_json(folder / CARD)["sae"]["weights_hash"]
  except (ValueError, KeyError, TypeError):
    return None


def _remove(root: pathlib.Path, folder: pathlib.Path) -> None:
  """Deletes an SAE's folder that has another name now, and empty ones above."""
  for path in folder.glob("*"):
    path.unlink()
  while folder != root and folder.is_dir() and not any(folder.iterdir()):
    folder.rmdir()
    folder = folder.parent

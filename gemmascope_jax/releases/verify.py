"""Whether a release is what it says, as far as that shows without a model."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax import sae as saes
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.releases import card as cards
from gemmascope_jax.releases import folder, readme
from gemmascope_jax.sae.sae import SAE, weights_hash


@dataclasses.dataclass(frozen=True)
class Line:
  """One thing that was looked at.

  Attributes:
    ok: whether it is as it should be.
    where: file or folder below the release, or the release.
    said: what was found.
  """

  ok: bool
  where: str
  said: str

  def __str__(self) -> str:
    return f"{'ok  ' if self.ok else 'FAIL'}  {self.where}: {self.said}"


@dataclasses.dataclass(frozen=True, eq=False)
class Release:
  """A release that was read.

  Attributes:
    root: its folder.
    index: see `folder`.
    cards: of each SAE that could be loaded, by folder.
    saes: the same SAEs.
    measured: what their cards' numbers were made from: arrays by name.
    lines: what was found.
  """

  root: pathlib.Path
  index: dict[str, Any]
  cards: dict[str, dict[str, Any]]
  saes: dict[str, SAE]
  measured: dict[str, dict[str, np.ndarray]]
  lines: list[Line]


def read(root: str | os.PathLike) -> Release:
  """Compares every hash and loads every SAE that is whole.

  Raises:
    FileNotFoundError: no folder there.
    folder.ReleaseError: no release, or one that names files elsewhere.
  """
  root = pathlib.Path(root)
  index = folder.read_index(root)
  damage = folder.damage(root, index)
  lines = [Line(False, name, why) for name, why in sorted(damage.items())]
  if not damage:
    count, size = len(index["files"]), 0
    size = sum(each["bytes"] for each in index["files"].values())
    lines.append(
      Line(True, "index.json", f"{count} files, {size:,} bytes, as indexed")
    )
  found = Release(root, index, {}, {}, {}, lines)
  for each in index["saes"]:
    name = each["folder"]
    bad = [file for file in damage if file.startswith(f"{name}/")]
    if bad:
      lines.append(Line(False, name, f"not measured: {bad[0]} is not whole"))
      continue
    try:
      card, sae, arrays = _load(root / name)
      wrong = _mismatch(card, sae, each)
    except (ValueError, KeyError, TypeError, OSError) as error:
      lines.append(Line(False, name, f"can't be loaded: {error}"))
      continue
    if wrong:
      lines.append(Line(False, name, wrong))
      continue
    found.cards[name], found.saes[name] = card, sae
    found.measured[name] = arrays
  if len(found.cards) == len(index["saes"]) and folder.README not in damage:
    lines.append(_readme(found))
  return found


def _readme(found: Release) -> Line:
  """Whether the README is what the cards give."""
  try:
    made = readme.render(found.cards, found.index["weights_format"])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    return Line(
      False,
      folder.README,
      "can't be made again from the cards, as one of them lacks something or"
      f" holds what it should not: {type(error).__name__}: {error}",
    )
  path = found.root / folder.README
  if not path.is_file():
    return Line(False, folder.README, "is missing")
  there = path.read_text(encoding="utf-8", errors="replace").splitlines()
  lines = itertools.zip_longest(there, made.splitlines())
  for number, (ours, theirs) in enumerate(lines, 1):
    if ours != theirs:
      return Line(
        False,
        folder.README,
        f"line {number} is not what the cards give: {_short(ours)}, expected"
        f" {_short(theirs)}; it or a card was changed, or it was made by another"
        f" version ({found.index.get('code')}; this is"
        f" {artifacts.code_version()})",
      )
  return Line(True, folder.README, "what the cards give, word by word")


def _short(line: str | None) -> str:
  if line is None:
    return "no such line"
  return repr(line if len(line) <= 200 else f"{line[:200]}...")


def _load(where: pathlib.Path):
  card = cards.read(where / folder.CARD)
  return card, saes.load(where), _arrays(where / folder.SEQUENCES)


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  """What was measured of each sequence; the sequences' keys stay text."""
  values = artifacts.read_json(path)
  if not isinstance(values, dict) or "sequences" not in values:
    raise ValueError(f"{path} lacks sequences: fetch it again")
  return {
    name: np.asarray(value, None if name == "sequences" else np.float64)
    for name, value in values.items()
  }


def _mismatch(card, sae: SAE, listed: Mapping[str, Any]) -> str:
  """Where an SAE, its card and the index say different things."""
  said, config = card["sae"], sae.config
  found = weights_hash(sae)
  if not found == said["weights_hash"] == listed["weights_hash"]:
    return (
      f"its weights hash to {found[:12]}..., but its card is of"
      f" {said['weights_hash'][:12]}... and the index of"
      f" {str(listed['weights_hash'])[:12]}...: another SAE's file or card"
    )
  l0 = card["evaluation"]["metrics"]["l0"]["mean"]
  if listed.get("l0") != l0:
    return f"the index says L0 {listed.get('l0')!r}, but its card {l0!r}"
  for name in ("site", "target_site", "k"):
    ours = getattr(config, name)
    if ours is not None and ours != said[name]:
      return f"its {name} is {ours}, but its card says {said[name]}"
  if config.token_policy is not None:
    policy = TokenPolicy.from_dict(card["token_policy"])
    if config.token_policy != policy:
      return (
        f"mismatched token policy: its weights were made under"
        f" {config.token_policy.to_dict()}, but its card says"
        f" {policy.to_dict()}"
      )
  return ""


def check_model(release: Release, lm) -> list[Line]:
  """Whether a language model is the one that a release is of.

  Args:
    release: with at least one SAE.
    lm: its label, weights' hash and tokenizer.

  Returns:
    A line for each thing that is not so, or one that all is.
  """
  found = []
  said = release.index["model"]
  if lm.weights_hash != said["weights_hash"]:
    found.append(
      Line(
        False,
        "model",
        f"another model: {lm.label} has weights {lm.weights_hash[:12]}..., but"
        f" the release is of {said['label']} with weights"
        f" {said['weights_hash'][:12]}...; name it with --lm",
      )
    )
  if lm.tokenizer.fingerprint != said["tokenizer"]:
    found.append(
      Line(
        False,
        "tokenizer",
        f"another tokenizer: {lm.tokenizer.fingerprint}, but the release was"
        f" made with {said['tokenizer']}",
      )
    )
  for name, card in release.cards.items():
    policy = TokenPolicy.from_dict(card["token_policy"])
    plain = dataclasses.replace(policy, excluded_sequences=())
    own = TokenPolicy.of(lm.tokenizer)
    if plain != own:
      found.append(
        Line(
          False,
          name,
          f"mismatched token policy: its card says {policy.to_dict()}, but BOS,"
          f" EOS and padding of {lm.label} are {own.to_dict()}",
        )
      )
  return found or [
    Line(True, "model", f"{lm.label}, its weights and tokenizer")
  ]

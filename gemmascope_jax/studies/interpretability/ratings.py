"""People's ratings, read back and counted by family (paper, figure 6).

A share's standard error is clustered by latent: raters of one latent agree more
than raters of two. Its interval is Wilson's with the number of independent
ratings that would give that standard error, which is the number of ratings
where each latent has one.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.studies.estimate import Estimate, ratio
from gemmascope_jax.studies.interpretability import summary
from gemmascope_jax.studies.interpretability.rating_sheet import LABELS

_NEEDED = ("sheet", "item", "rater", "label")


class RatingError(ValueError):
  """A file of ratings that can't be used; says where."""


@dataclasses.dataclass(frozen=True)
class Rating:
  """One rater's word on one latent.

  Attributes:
    rater: who.
    sae: the SAE's name.
    family: its family.
    latent: its number.
    label: "YES", "MAYBE" or "NO".
  """

  rater: str
  sae: str
  family: str
  latent: int
  label: str


def read(
  paths: Iterable[str | os.PathLike],
  key: str | os.PathLike | dict[str, Any],
  rater: str | None = None,
) -> list[Rating]:
  """Reads files of ratings, and says which latent each is about.

  Args:
    paths: CSV or JSON files, as the page downloads them or a spreadsheet saves
      them. Items without a label are skipped.
    key: the sheet's key.json.
    rater: who, for files that don't say it.

  Raises:
    RatingError: a missing column or rater, another sheet, an unknown item, a
      label that is none, or two ratings of an item by one rater.
  """
  if not isinstance(key, dict):
    key = artifacts.read_json(key)
  found: dict[tuple[str, str], Rating] = {}
  for path in paths:
    for where, row in _rows(pathlib.Path(path)):
      rating = _rating(where, row, key, rater)
      if rating is None:
        continue
      place = (rating.rater, row["item"])
      if place in found:
        raise RatingError(
          f"{where}: {rating.rater!r} has rated item {row['item']} before;"
          " leave one of the two out"
        )
      found[place] = rating
  return list(found.values())


def table(ratings: Sequence[Rating]) -> dict[str, Any]:
  """Shares of the labels for each family.

  Args:
    ratings: as `read` returns them.

  Returns:
    JSON-ready: {"raters", "ratings", "families": [{"family", "latents",
    "ratings", "raters", "yes", "maybe", "no", "intervals", "agreement"}],
    "differences"}; "yes" and so on are estimates over latents, "intervals" are
    of 95%, "agreement" is the share of pairs of raters of a latent who gave it
    the same label. `study.run`'s result takes it as "ratings".

  Raises:
    ValueError: no ratings.
  """
  if not ratings:
    raise ValueError("no ratings: expected at least one with a label")
  groups: dict[str, list[Rating]] = {}
  for rating in ratings:
    groups.setdefault(rating.family, []).append(rating)
  families = [_family(name, groups[name]) for name in sorted(groups)]
  return {
    "raters": len({rating.rater for rating in ratings}),
    "ratings": len(ratings),
    "families": families,
    "differences": summary.differences(families, "yes"),
  }


def wilson(share: Estimate, ratings: int) -> list[float]:
  """Wilson's 95 % interval at the ratings' effective number.

  Args:
    share: mean and standard error over latents.
    ratings: how many there are.
  """
  z = statistics.NormalDist().inv_cdf(0.975)
  p, n = share.mean, float(share.n)
  if share.stderr:
    # One rating a latent: stderr^2 is p (1 - p) / (n - 1).
    n = min(p * (1 - p) / share.stderr**2 + 1, float(ratings))
  centre = (p + z * z / (2 * n)) / (1 + z * z / n)
  half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  return [float(max(0.0, centre - half)), float(min(1.0, centre + half))]


def _family(name: str, ratings: list[Rating]) -> dict[str, Any]:
  by_latent: dict[tuple[str, int], list[str]] = {}
  for rating in ratings:
    by_latent.setdefault((rating.sae, rating.latent), []).append(rating.label)
  labels = list(by_latent.values())
  counts = np.array([len(each) for each in labels], np.float64)
  shares = {
    label: ratio(np.array([each.count(label) for each in labels]), counts)
    for label in LABELS
  }
  return {
    "family": name,
    "latents": len(labels),
    "ratings": len(ratings),
    "raters": len({rating.rater for rating in ratings}),
    "agreement": _agreement(labels),
    "intervals": {
      label.lower(): wilson(share, len(ratings))
      for label, share in shares.items()
    },
    **{label.lower(): share.to_dict() for label, share in shares.items()},
  }


def _agreement(labels: list[list[str]]) -> float | None:
  """Of pairs of raters of one latent; None if none was rated twice."""
  same = pairs = 0
  for each in labels:
    pairs += len(each) * (len(each) - 1) // 2
    for label in LABELS:
      count = each.count(label)
      same += count * (count - 1) // 2
  return same / pairs if pairs else None


def _rating(where, row, key, rater) -> Rating | None:
  label = row["label"].strip().upper()
  if not label:
    return None
  if row["sheet"] != key["sheet"]:
    raise RatingError(
      f"{where}: of sheet {row['sheet']!r}, but the key is of sheet"
      f" {key['sheet']!r}: use the key that was written with the sheet"
    )
  hidden = key["items"].get(row["item"])
  if hidden is None:
    raise RatingError(
      f"{where}: item {row['item']!r} is not on sheet {key['sheet']!r}"
    )
  if label not in LABELS:
    raise RatingError(
      f"{where}: label {row['label']!r}, expected one of {', '.join(LABELS)}"
    )
  name = row["rater"].strip() or (rater or "")
  if not name:
    raise RatingError(
      f"{where}: no rater; fill in the column `rater`, or pass rater=NAME"
    )
  return Rating(
    name, hidden["sae"], hidden["family"], int(hidden["latent"]), label
  )


def _rows(path: pathlib.Path) -> Iterable[tuple[str, dict[str, str]]]:
  """(where it stands, its needed columns) of each row of a file."""
  if path.suffix == ".json":
    rows = artifacts.read_json(path)
    if not isinstance(rows, list):
      raise RatingError(f"{path}: expected a list of ratings")
    numbered = enumerate(rows, 1)
  else:
    text = path.read_text(encoding="utf-8-sig")
    # Spreadsheets of half the world write semicolons.
    first = text.split("\n", 1)[0]
    mark = ";" if first.count(";") > first.count(",") else ","
    numbered = enumerate(csv.DictReader(io.StringIO(text), delimiter=mark), 1)
  for number, row in numbered:
    where = f"{path}, rating {number}"
    missing = [
      name
      for name in _NEEDED
      if not isinstance(row, dict) or not isinstance(row.get(name), str)
    ]
    if missing:
      raise RatingError(f"{where}: no {', '.join(missing)}")
    yield where, {name: row[name] for name in _NEEDED}

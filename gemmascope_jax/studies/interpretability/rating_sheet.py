"""Blinded sheets for people to rate latents on: is there one meaning to it?

Latents of several SAEs are mixed in random order under numbers that say nothing;
which is which stands in a key file that the raters don't get. Activations are
shown relative to each latent's largest, because their scale would tell SAEs
apart.

    sheet.html   a page that works from disk: buttons, keys, progress
    sheet.csv    the same for a spreadsheet: fill in `rater` and `label`
    key.json     keep it from the raters until `ratings.read`
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.studies.interpretability import rating_page
from gemmascope_jax.studies.interpretability.contexts import Contexts, Sample

PAGE, TABLE, KEY = "sheet.html", "sheet.csv", "key.json"
LABELS = ("YES", "MAYBE", "NO")
COLUMNS = ("sheet", "item", "rater", "label", "explanation", "contexts")


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
  """A latent to be rated.

  Attributes:
    sae: the SAE's name; hidden from the raters.
    family: its family, by which ratings are compared; hidden.
    latent: its number; hidden.
    contexts: what is shown, strongest first.
    explanation: shown above them, or None.
  """

  sae: str
  family: str
  latent: int
  contexts: Contexts
  explanation: str | None = None


def items(
  result: dict[str, Any],
  samples: Mapping[str, Sequence[Sample]],
  each: int | None = None,
  explanations: bool = True,
) -> list[Item]:
  """The latents of a study's result, to be rated.

  Args:
    result: as `study.run` returns it.
    samples: of each of its SAEs by name, as they were gathered.
    each: of each SAE only the first so many, which are random ones; None: all.
    explanations: show the text that the explainer wrote, where there is one.

  Raises:
    ValueError: the samples are not the result's.
  """
  from gemmascope_jax.studies.interpretability import summary

  found = []
  for sae in result["saes"]:
    rows = {row["latent"]: row for row in sae["latents"]}
    for sample in list(samples[sae["name"]])[:each]:
      if sample.latent not in rows:
        raise ValueError(
          f"latent {sample.latent} of {sae['name']!r} is not in the result:"
          " gather with the same SAE, design and seed"
        )
      text = rows[sample.latent]["explanation"]
      shown = text if explanations and isinstance(text, str) else None
      family = summary.group_of(sae)
      found.append(
        Item(sae["name"], family, sample.latent, sample.shown, shown)
      )
  return found


def write(
  folder: str | os.PathLike,
  rated: Sequence[Item],
  tokenizer: Any,
  seed: int = 0,
  contexts: int = 6,
) -> dict[str, Any]:
  """Writes the page, the table and the key.

  Args:
    folder: for the three files.
    rated: what to rate.
    tokenizer: for the tokens' text.
    seed: of the order and the numbers.
    contexts: shown of each latent, at most.

  Returns:
    The key: {"sheet": ..., "items": {id: {"sae", "family", "latent"}}}.

  Raises:
    ValueError: nothing to rate, or a latent twice.
    FileExistsError: the folder holds another sheet.
  """
  _check(rated)
  random = np.random.default_rng(seed)
  order = random.permutation(len(rated))
  names = [f"{n:08x}" for n in _distinct(random, len(rated))]
  shown, hidden = [], {}
  for name, place in zip(names, order, strict=True):
    item = rated[int(place)]
    hidden[name] = {
      "sae": item.sae,
      "family": item.family,
      "latent": item.latent,
    }
    shown.append(
      {
        "id": name,
        "explanation": item.explanation,
        "contexts": _shown(item.contexts.first(contexts), tokenizer),
      }
    )
  sheet = artifacts.fingerprint(shown)
  key = {"sheet": sheet, "items": hidden}
  folder = pathlib.Path(folder)
  if (folder / KEY).exists() and artifacts.read_json(folder / KEY) != key:
    raise FileExistsError(
      f"{folder} holds another sheet: without its {KEY}, ratings of it that"
      " people send would mean nothing. Move the folder away, or ask for the"
      " same sheet again (the same SAEs, latents and seed)"
    )
  artifacts.write_text(folder / PAGE, rating_page.page(sheet, shown))
  artifacts.write_text(folder / TABLE, _table(sheet, shown))
  artifacts.write_json(folder / KEY, key)
  return key


def _check(rated: Sequence[Item]) -> None:
  if not rated:
    raise ValueError("nothing to rate: expected at least one latent")
  seen = set()
  for item in rated:
    if (item.sae, item.latent) in seen:
      raise ValueError(f"latent {item.latent} of {item.sae!r} is there twice")
    seen.add((item.sae, item.latent))


def _distinct(random: np.random.Generator, count: int) -> list[int]:
  """Different 32-bit numbers."""
  found: dict[int, None] = {}
  while len(found) < count:
    found[int(random.integers(1 << 32))] = None
  return list(found)


def _shown(contexts: Contexts, tokenizer: Any) -> list[list[list]]:
  """[[text, level 0..10] of each token] of each context."""
  return [
    [
      [piece, int(level)]
      for piece, level in zip(
        tokenizer.pieces([int(id_) for id_ in tokens[keep]]),
        levels[keep],
        strict=True,
      )
    ]
    for tokens, levels, keep in zip(
      contexts.tokens, contexts.quantised(), contexts.keep, strict=True
    )
  ]


def _table(sheet: str, shown: list[dict[str, Any]]) -> str:
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  writer.writerow(COLUMNS)
  for item in shown:
    lines = []
    for tokens in item["contexts"]:
      text = "".join(
        f"[[{piece}]]{level}" if level else piece for piece, level in tokens
      )
      lines.append(json.dumps(text, ensure_ascii=False))
    explanation = _inert(item["explanation"] or "")
    row = (sheet, item["id"], "", "", explanation, "\n".join(lines))
    writer.writerow(row)
  return file.getvalue()


def _inert(text: str) -> str:
  """A cell that no spreadsheet takes for a formula."""
  return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text

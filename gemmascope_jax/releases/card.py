"""The card of a released SAE: what it is, where it comes from, what it does.

JSON, so that it can be checked; the README is made from it. Nothing in it names
a path of the machine that made it.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from gemmascope_jax import artifacts
from gemmascope_jax.sae.sae import SAE, weights_hash

FORMAT = 1
# The Hub's names of licences that make sense for weights.
LICENCES = (
  "apache-2.0",
  "bsd-3-clause",
  "cc-by-4.0",
  "cc-by-nc-4.0",
  "cc-by-nc-sa-4.0",
  "cc-by-sa-4.0",
  "cc0-1.0",
  "gemma",
  "gpl-3.0",
  "mit",
  "openrail",
  "unlicense",
)
_PREFIXES = ("file:", "hf:")


def check_licence(licence: str) -> None:
  """Refuses a licence that the Hub does not know by that name; "" is none."""
  if licence and licence not in LICENCES:
    raise ValueError(
      f"licence {licence!r}: expected one of {', '.join(LICENCES)}, as the Hub"
      " spells them"
    )


def make(
  sae: SAE,
  *,
  name: str,
  model: Mapping[str, Any],
  training: Mapping[str, Any],
  evaluation: Mapping[str, Any],
  licence: str,
) -> dict[str, Any]:
  """The card of one SAE, without its files.

  Args:
    sae: finished and folded.
    name: in its run.
    model: the language model: "label", "weights_hash", "tokenizer", "source",
      "delta" or None, "base" (its id on the Hub, or None), "dtype".
    training: "sources", "licences" and "config" of its run.
    evaluation: "metrics", each {"mean", "stderr", "n"}; "tokens" (what text,
      how much, its hash); "code".
    licence: of the weights; "": none stated.
  """
  details = sae.config.details()
  policy = sae.config.token_policy
  return {
    "format": FORMAT,
    "name": name,
    "licence": licence or None,
    "sae": {
      "family": sae.config.family,
      "k": sae.config.k,
      "site": sae.config.site,
      "target_site": sae.config.target_site,
      "width": sae.width,
      "site_width": sae.site_width,
      "target_width": sae.target_width,
      "skip": sae.params.w_skip is not None,
      "weights_hash": weights_hash(sae),
      # The scales are in the weights: it reads raw activations.
      "normalisation": {
        "folded": True,
        "scale": details.get("normalisation"),
      },
    },
    "model": dict(model),
    "token_policy": policy and policy.to_dict(),
    "training": {
      **training,
      "recipe": details.get("recipe"),
      "activations": details.get("rows"),
      "steps": details.get("steps"),
      "dead": {
        "share": details.get("dead_fraction"),
        "after_activations": details.get("dead_after_rows"),
      },
      "hashes": {
        key: details.get(key) for key in ("store", "stream", "tokens")
      },
    },
    "evaluation": dict(evaluation),
  }


def without_paths(value: Any) -> Any:
  """JSON without paths of this machine: of each, only the last part stays.

  Args:
    value: JSON-ready; a string is a path if it is absolute or there is such a
      file or folder here, after "file:" or "hf:" too.
  """
  if isinstance(value, Mapping):
    return {key: without_paths(each) for key, each in value.items()}
  if isinstance(value, (list, tuple)):
    return [without_paths(each) for each in value]
  if not isinstance(value, str):
    return value
  prefix = next((p for p in _PREFIXES if value.startswith(p)), "")
  rest = value[len(prefix) :]
  path = pathlib.Path(rest).expanduser()
  is_path = os.sep in rest and (path.is_absolute() or path.exists())
  return prefix + path.name if is_path else value


def publishable(sae: SAE) -> SAE:
  """The SAE without paths of this machine in its provenance."""
  details = without_paths(sae.config.details())
  config = vars(sae.config) | {"provenance": artifacts.canonical_json(details)}
  return sae.replace(config=type(sae.config)(**config))


def read(path: str | os.PathLike) -> dict[str, Any]:
  """A card.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged, lacks a number that every card has, or is of a
      newer version; names the file.
  """
  card = artifacts.read_json(path)
  if not isinstance(card, dict) or card.get("format") != FORMAT:
    found = card.get("format") if isinstance(card, dict) else json.dumps(card)
    raise ValueError(
      f"{path} has format {found}, this version reads {FORMAT}: update"
      " gemmascope_jax, or fetch the file again"
    )
  lacks = [key for key in _SECTIONS if not isinstance(card.get(key), dict)]
  if lacks:
    raise ValueError(f"{path} lacks {', '.join(lacks)}: fetch it again")
  metrics = card["evaluation"].get("metrics")
  if not isinstance(metrics, dict):
    raise ValueError(
      f"{path}: evaluation.metrics is {metrics!r}, expected numbers by name:"
      " fetch it again"
    )
  for name in METRICS:
    found = metrics.get(name)
    if not (isinstance(found, dict) and _is_number(found.get("mean"))):
      raise ValueError(
        f"{path}: evaluation.metrics.{name} is {found!r}, expected a mean, its"
        " stderr and n: fetch it again"
      )
  return card


# Which every card has.
METRICS = (
  "l0",
  "fvu",
  "delta_loss",
  "loss_recovered",
  "loss_clean",
  "silent",
)


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


_SECTIONS = ("sae", "model", "token_policy", "evaluation", "files")

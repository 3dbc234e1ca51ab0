"""`sae.json`: what an SAE is, beside its arrays, whatever their format.

Other people's formats have no place for a token policy or a training recipe,
and some none for a site. So this file stands beside the arrays: a folder that
we wrote loads as what was saved, and other tools do not mind it. It names the
SHA-256 of the arrays, so that it cannot be taken for that of other ones.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from gemmascope_jax import artifacts
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.gemma import sites
from gemmascope_jax.releases import names
from gemmascope_jax.sae import config as sae_config
from gemmascope_jax.sae.sae import SAEConfig

CARD = "sae.json"
FORMAT = 2
_OLDER = 1  # of SAEs only
_KEYS = ("family", "site", "model", "token_policy", "provenance", "sha256")


def write(
  card: str | os.PathLike, arrays: Sequence[pathlib.Path], config: SAEConfig
) -> None:
  """Writes the card; do it last, so that what has a card is whole.

  Args:
    card: its path.
    arrays: the files that it describes, in a fixed order.
    config: the SAE's.
  """
  policy = config.token_policy
  artifacts.write_json(
    card,
    {
      "format": FORMAT,
      "family": config.family,
      "k": config.k,
      "site": config.site,
      "target_site": config.target_site,
      "parts": config.parts,
      "model": config.model,
      "token_policy": policy and policy.to_dict(),
      "provenance": config.details(),
      "sha256": _digest(arrays),
      "code": artifacts.code_version(),
    },
  )


def is_whole(card: str | os.PathLike, arrays: Sequence[pathlib.Path]) -> bool:
  """Whether all is there and the arrays are still those the card describes."""
  card = pathlib.Path(card)
  if not (card.exists() and all(file.exists() for file in arrays)):
    return False
  try:
    found = artifacts.read_json(card)
  except ValueError:
    return False
  return isinstance(found, dict) and found.get("sha256") == _digest(arrays)


def read(
  card: str | os.PathLike, arrays: Sequence[pathlib.Path]
) -> SAEConfig | None:
  """What the card says; None if there is none.

  Raises:
    ValueError: a card of a newer version, of other arrays, or a damaged one;
      names the key and what was expected.
  """
  if not os.path.exists(card):
    return None
  found = artifacts.read_json(card)
  if not isinstance(found, dict):
    raise ValueError(f"{card} is no card of an SAE: expected a JSON object")
  if found.get("format") not in (_OLDER, FORMAT):
    raise ValueError(
      f"{card} has format {found.get('format')}, this version reads"
      f" {FORMAT}: update gemmascope_jax"
    )
  missing = [key for key in _KEYS if key not in found]
  if missing:
    raise ValueError(
      f"{card} does not say {', '.join(missing)}: it is damaged; fetch or write"
      " the folder again, or remove the card to load the arrays alone"
    )
  digest = _digest(arrays)
  if found["sha256"] != digest:
    raise ValueError(
      f"{arrays[0]} is not the file that {card} describes: sha256"
      f" {digest[:12]}..., expected {str(found['sha256'])[:12]}...; fetch or write"
      " the folder again"
    )
  for key, (is_one, expected) in _VALUES.items():
    if not is_one(found.get(key)):
      raise ValueError(
        f"{card}: {key} is {found.get(key)!r}, expected {expected}; it is damaged:"
        " fetch or write the folder again"
      )
  policy = found["token_policy"]
  return SAEConfig(
    family=found["family"],
    k=found.get("k"),
    site=found["site"],
    target_site=found.get("target_site"),
    parts=tuple((site, width) for site, width in found.get("parts") or ()),
    model=found["model"],
    token_policy=policy and TokenPolicy.from_dict(policy),
    provenance=artifacts.canonical_json(found["provenance"]),
  )


def _is_site(value: Any) -> bool:
  return value is None or (
    isinstance(value, str) and all(map(_SITE.fullmatch, value.split("+")))
  )


def _is_parts(value: Any) -> bool:
  return value is None or (
    isinstance(value, list)
    and all(
      isinstance(each, list)
      and len(each) == 2
      and isinstance(each[0], str)
      and _SITE.fullmatch(each[0])
      and _is_count(each[1])
      for each in value
    )
  )


def _is_count(value: Any) -> bool:
  return type(value) is int and value > 0


def _are_ids(value: Any) -> bool:
  return isinstance(value, list) and all(type(i) is int for i in value)


def _is_policy(value: Any) -> bool:
  if value is None:
    return True
  if not isinstance(value, dict) or type(value.get("pad_id")) is not int:
    return False
  runs = value.get("excluded_sequences", [])
  return (
    _are_ids(value.get("excluded_ids"))
    and isinstance(runs, list)
    and all(run and _are_ids(run) for run in runs)
  )


_MADE_UP = "synthetic"  # of no language model, see `gemmascope_jax.synthetic`
_SITE = re.compile(
  rf"{names.EMBEDDING}|{_MADE_UP}|(?:{'|'.join(sites.KINDS)}|{names.GAINED})"
  r"\.(?:0|[1-9][0-9]*)"
)
_SITES = (
  f"KIND.LAYER with KIND one of {', '.join(sites.KINDS)}, {names.GAINED};"
  f" {names.EMBEDDING}; {_MADE_UP}; several with + between them; or null"
)
# Of each key whether a value is one, and what is expected.
_VALUES = {
  "family": (
    lambda value: isinstance(value, str) and value in sae_config.FAMILIES,
    f"one of {', '.join(sae_config.FAMILIES)}",
  ),
  "k": (
    lambda value: value is None or _is_count(value),
    "a whole number from 1, or null",
  ),
  "site": (_is_site, _SITES),
  "target_site": (_is_site, _SITES),
  "parts": (_is_parts, "a list of [site, width]"),
  "model": (
    lambda value: value is None or isinstance(value, str),
    "a string or null",
  ),
  "token_policy": (
    _is_policy,
    'null or {"excluded_ids": [IDS], "pad_id": ID}, and maybe'
    ' "excluded_sequences"',
  ),
  "provenance": (lambda value: isinstance(value, dict), "a JSON object"),
}


def foreign(format: str, about: dict, **fields) -> SAEConfig:
  """Of an SAE that came without a card.

  Args:
    format: in which it came.
    about: what its own files say of it; kept as provenance.
    **fields: of `SAEConfig`.
  """
  provenance = artifacts.canonical_json({"format": format, "about": about})
  return SAEConfig(**fields, provenance=provenance)


def _digest(arrays: Sequence[pathlib.Path]) -> str:
  """One file's SHA-256; of several, that of theirs."""
  digests = [artifacts.sha256_file(file) for file in arrays]
  if len(digests) == 1:
    return digests[0]
  return hashlib.sha256("".join(digests).encode()).hexdigest()

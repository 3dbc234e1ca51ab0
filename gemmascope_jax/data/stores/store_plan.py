"""What determines the bytes of a store, and the name that follows from it.

A plan is known before the first row is computed. Two harvests with equal plans
give equal rows; a folder that holds another plan is refused, never mixed.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from typing import Any

from gemmascope_jax import artifacts
from gemmascope_jax.data.policy import TokenPolicy

FORMAT = 2
KIND = "gemmascope_jax activation store"
FILE = "plan.json"  # in a store
DTYPES = ("float32", "bfloat16")


class StoreMismatchError(ValueError):
  """A store holds something else than what was asked for."""


@dataclasses.dataclass(frozen=True)
class StorePlan:
  """What determines the bytes of a store.

  Attributes:
    model: the model's label, for people; two labels of one hash are one model.
    weights_hash: fingerprint of the model's weights.
    compute_dtype: of the parameters, and so of the forward pass.
    tokenizer: the tokenizer's fingerprint.
    sites: (name, width) of each site.
    policy: which positions become rows.
    dtype: of the rows on disk, "float32" or "bfloat16".
    rows: exact number of rows for each site.
    rows_per_shard: of every shard but the last.
    batch: windows in one forward pass.
    windows: N, as many as the rows need.
    window: T, tokens in a window.
    tokens: SHA-256 of the windows.
  """

  model: str
  weights_hash: str
  compute_dtype: str
  tokenizer: str
  sites: tuple[tuple[str, int], ...]
  policy: TokenPolicy
  dtype: str
  rows: int
  rows_per_shard: int
  batch: int
  windows: int
  window: int
  tokens: str

  @functools.cached_property
  def fingerprint(self) -> str:
    """16 hex digits over everything but the label."""
    value = self.to_dict()
    del value["model"]["label"]
    return artifacts.fingerprint(value)

  @property
  def name(self) -> str:
    """A folder name that says what the store is, and is unique to it."""
    words = [self.model, *(name for name, _ in self.sites[:3])]
    words = [re.sub(r"[^\w.]+", "-", word).strip("-") for word in words]
    return "_".join([*words, self.fingerprint])

  @property
  def shards(self) -> int:
    """Number of shards of each site."""
    return -(-self.rows // self.rows_per_shard)

  def shard_rows(self, shard: int) -> int:
    """Rows in a shard: `rows_per_shard`, or less in the last one."""
    return min(self.rows_per_shard, self.rows - shard * self.rows_per_shard)

  def to_dict(self) -> dict[str, Any]:
    """JSON-ready form; the plan's part of the manifest."""
    return {
      "kind": KIND,
      "format": FORMAT,
      "model": {
        "label": self.model,
        "weights_hash": self.weights_hash,
        "compute_dtype": self.compute_dtype,
      },
      "tokenizer": self.tokenizer,
      "widths": [list(site) for site in self.sites],
      "token_policy": self.policy.to_dict(),
      "dtype": self.dtype,
      "rows": self.rows,
      "rows_per_shard": self.rows_per_shard,
      "batch": self.batch,
      "windows": self.windows,
      "window": self.window,
      "tokens_sha256": self.tokens,
    }

  @classmethod
  def from_dict(
    cls, value: dict[str, Any], where: str | os.PathLike
  ) -> StorePlan:
    """The inverse of `to_dict`; `where` is named in errors.

    Raises:
      ValueError: not a store's plan, or one of another format.
    """
    if not isinstance(value, dict) or value.get("kind") != KIND:
      raise ValueError(f"{where} does not describe an activation store")
    found = value.get("format")
    if found != FORMAT:
      newer = isinstance(found, int) and found > FORMAT
      remedy = (
        "update gemmascope_jax"
        if newer
        else "harvest it again, into another folder"
      )
      raise ValueError(
        f"{where} has format {found}, but this version of the code reads format"
        f" {FORMAT}: {remedy}"
      )
    try:
      return cls._from_dict(value)
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(
        f"{where} is damaged ({type(error).__name__}: {error}): delete it and"
        " run the same harvest again, which keeps the shards"
      ) from error

  @classmethod
  def _from_dict(cls, value: dict[str, Any]) -> StorePlan:
    return cls(
      model=value["model"]["label"],
      weights_hash=value["model"]["weights_hash"],
      compute_dtype=value["model"]["compute_dtype"],
      tokenizer=value["tokenizer"],
      sites=tuple((name, width) for name, width in value["widths"]),
      policy=TokenPolicy.from_dict(value["token_policy"]),
      tokens=value["tokens_sha256"],
      **{
        name: value[name]
        for name in (
          "dtype",
          "rows",
          "rows_per_shard",
          "batch",
          "windows",
          "window",
        )
      },
    )

  def require_same(self, found: StorePlan, where: str | os.PathLike) -> None:
    """Raises `StoreMismatchError` unless `found` has this plan's bytes."""
    if self.fingerprint == found.fingerprint:
      return
    differences = []
    if self.weights_hash != found.weights_hash:
      differences.append(
        f"its model is {found.model} (weights {found.weights_hash[:12]}), not"
        f" {self.model} (weights {self.weights_hash[:12]})"
      )
    for field in dataclasses.fields(self):
      if field.name in ("model", "weights_hash"):
        continue
      theirs, ours = getattr(found, field.name), getattr(self, field.name)
      if theirs != ours:
        differences.append(
          f"its {field.name} is {_show(theirs)}, not {_show(ours)}"
        )
    raise StoreMismatchError(
      f"{where} holds another store: {'; '.join(differences)}. Use another"
      " folder, or delete this one"
    )


def _show(value: Any) -> str:
  if isinstance(value, TokenPolicy):
    return str(value.to_dict())
  if isinstance(value, tuple):
    return ", ".join(f"{name} ({width} wide)" for name, width in value)
  return str(value)

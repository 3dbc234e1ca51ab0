"""The SAEs that studies are about: what each is called and where it belongs."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.gemma import sites
from gemmascope_jax.sae.load import load
from gemmascope_jax.sae.sae import SAE, SAEConfig
from gemmascope_jax.studies import sparsity_fidelity
from gemmascope_jax.studies.replacements import FromSAE


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
  """An SAE or a transcoder.

  Attributes:
    name: in results, figures and tables; of its own.
    sae: the finished SAE.
    reads: the site whose activation it reads.
    site: the site that it replaces; `reads` but for a transcoder.
  """

  name: str
  sae: SAE
  reads: str
  site: str

  @property
  def is_transcoder(self) -> bool:
    """Whether it reads another site than it replaces."""
    return self.reads != self.site

  def check(self, lm, policy: TokenPolicy) -> None:
    """Refuses one that does not belong to this model; see `check_sae`."""
    sparsity_fidelity.check_sae(
      lm,
      self.reads,
      self.sae,
      policy,
      target=self.site if self.is_transcoder else None,
    )

  def replacement(self) -> FromSAE:
    """What is spliced in, on the device."""
    # Without its provenance, which is static, all of one shape compile once.
    sae = self.sae.replace(config=SAEConfig(k=self.sae.config.k))
    return FromSAE(
      jax.tree.map(jnp.asarray, sae),
      reads=self.reads if self.is_transcoder else None,
    )

  def describe(self) -> dict[str, Any]:
    """JSON-ready row: what results say of it before anything is measured."""
    details = self.sae.config.details()
    recipe = details.get("recipe", {})
    return {
      "name": self.name,
      "site": self.site,
      "reads": self.reads,
      "family": self.sae.config.family,
      "width": self.sae.width,
      "k": self.sae.config.k,
      "skip": self.sae.params.w_skip is not None,
      "sparsity_coefficient": recipe.get("sparsity_coefficient"),
      "seed": recipe.get("seed"),
      "train_tokens": details.get("rows"),
    }


def subject(sae: SAE, name: str, site: str | None = None) -> Subject:
  """A subject from an SAE that may say itself where it belongs.

  Args:
    sae: the finished SAE.
    name: what to call it.
    site: where it reads; None: what it says itself.

  Returns:
    The subject, whose SAE says the site too.

  Raises:
    ValueError: nobody says where, it says another site, or it is a crosscoder.
  """
  own = sae.config.site
  if site is None and own is None:
    raise ValueError(
      f"{name} does not say at which site it was trained: say it, as"
      " res.12=PATH"
    )
  if sae.config.parts:
    raise ValueError(
      f"{name} is a crosscoder of {own}, which the studies can't splice:"
      " expected SAEs of one site, or transcoders"
    )
  if None not in (site, own) and site != own:
    raise ValueError(f"{name} was trained at {own}, not at {site}")
  reads = site or own
  if own is None:  # so that whoever asks the SAE is told too
    sae = sae.replace(config=dataclasses.replace(sae.config, site=reads))
  return Subject(name, sae, reads, sae.config.target_site or reads)


def read(given: str) -> Subject:
  """Reads an SAE that a command names.

  Args:
    given: "PATH", "SITE=PATH" or "NAME:SITE=PATH"; without a name it is called
      by its folders.

  Raises:
    ValueError: no site, or another than the SAE says; see `subject`.
    FileNotFoundError: no SAE at the path.
  """
  label, found, path = given.rpartition("=")
  if not found or not re.fullmatch(r"(?:[^:/]+:)?\w+\.\d+", label):
    label, path = "", given
  name, _, site = label.rpartition(":")
  if site:
    sites.parse(site)
  where = pathlib.Path(path)
  if not name:
    folder = where.parent if where.suffix == ".npz" else where
    name = "/".join(folder.parts[-3:])
  return subject(load(path), name, site or None)


def by_site(subjects: Iterable[Subject]) -> dict[str, list[Subject]]:
  """The subjects of each site that they replace, in order.

  Raises:
    ValueError: none, or two of one name.
  """
  found: dict[str, list[Subject]] = {}
  names = set()
  for each in subjects:
    if each.name in names:
      raise ValueError(
        f"two SAEs are called {each.name!r}: give them names of their own, as"
        " NAME:res.12=PATH"
      )
    names.add(each.name)
    found.setdefault(each.site, []).append(each)
  if not found:
    raise ValueError("no SAE: expected at least one")
  return found

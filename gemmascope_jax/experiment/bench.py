"""What the studies of one command share: a model, tokens, SAEs, their numbers.

Passes of the language model are shared: what is measured of an SAE on the same
tokens is kept, and every study that needs it reads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gemmascope_jax import artifacts, sae
from gemmascope_jax.data.text import texts
from gemmascope_jax.data.tokens import packing
from gemmascope_jax.experiment import activations, members, runs, settings
from gemmascope_jax.experiment.settings import Config
from gemmascope_jax.sae.sae import weights_hash
from gemmascope_jax.studies import measure, side_by_side, site_means
from gemmascope_jax.studies.records import SiteRecord, SpliceRecord
from gemmascope_jax.studies.replacements import Constant
from gemmascope_jax.studies.subjects import Subject, by_site, subject
from gemmascope_jax.studies.subjects import read as read_subject

PARTS = "results/parts"

# Of each site its record, and what each SAE and ablation does there.
Measured = dict[str, tuple[SiteRecord, dict[str, SpliceRecord]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
  """What all studies of one command share.

  Attributes:
    config: the settings.
    lm: the language model.
    policy: which tokens count.
    tokens: int32 [S, T], held-out sequences.
    subjects: the SAEs of each site that they replace.
    tuned: SAEs of another model: the one that `config.studies.instruct` names.
    folder: for what is measured.
    rows_store: activations with their tokens, of the run's training; None if SAEs
      were given and the run has none.
    untrained: an SAE of a site's run before its first step, by site.
    given: whether the SAEs were named one by one, so that all of them are wanted
      in every study.
  """

  config: Config
  lm: Any
  policy: Any
  tokens: np.ndarray
  subjects: dict[str, list[Subject]]
  tuned: list[Subject]
  folder: pathlib.Path
  rows_store: Any
  untrained: dict[str, sae.SAE]
  given: bool

  def every(self) -> list[Subject]:
    """All SAEs of the model."""
    return [one for each in self.subjects.values() for one in each]

  def rows(self) -> list[dict[str, Any]]:
    """A description of each SAE."""
    return [one.describe() for one in self.every()]

  def measured(
    self,
    subjects: Mapping[str, Sequence[Subject]] | None = None,
    tokens: np.ndarray | None = None,
  ) -> Measured:
    """Of each site the record, and each SAE's and ablation's.

    Args:
      subjects: of each site; None: all.
      tokens: int32 [S, T]; None: the held-out ones.
    """
    subjects = self.subjects if subjects is None else subjects
    tokens = self.tokens if tokens is None else tokens
    means = site_means.means(
      self.lm,
      list(subjects),
      tokens,
      self.policy,
      self.folder,
      batch=self.config.evaluate.batch,
      progress=self.config.progress,
    )
    found = {}
    for site, each in subjects.items():
      mean = means[site]
      replacements = {s.name: s.replacement() for s in each} | {
        side_by_side.ZERO: Constant(jnp.zeros(len(mean))),
        side_by_side.MEAN: Constant(jnp.asarray(mean, jnp.float32)),
      }
      found[site] = measure.measure(
        self.lm,
        site,
        replacements,
        tokens,
        self.policy,
        mean,
        self.folder,
        batch=self.config.evaluate.batch,
        splice_special=self.config.evaluate.splice_special,
        progress=self.config.progress,
      )
    return found

  def with_l0(self, subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Descriptions with the L0 on the held-out tokens."""
    measured = self.measured()
    found = []
    for one in subjects:
      record, spliced = measured[one.site]
      l0 = spliced[one.name].l0(record)
      found.append(one.describe() | {"l0": l0 and l0.to_dict()})
    return found

  def chosen(self, *kinds: str) -> dict[str, list[Subject]]:
    """The SAEs of costly studies, transcoders left out.

    Those that were given; else of each site the one whose L0 is nearest
    `evaluate.target_l0`.

    Args:
      *kinds: one of each kind: of each "family", each "family" and "width", ...
    """
    saes = {
      site: [one for one in each if not one.is_transcoder]
      for site, each in self.subjects.items()
    }
    saes = {site: each for site, each in saes.items() if each}
    if self.given:
      return saes
    found: dict[str, list[Subject]] = {}
    for site, each in saes.items():
      rows = self.with_l0(each)
      best: dict[tuple, tuple[float, int]] = {}
      for place, row in enumerate(rows):
        kind = tuple(row[name] for name in kinds)
        mine = (self._distance(row), place)
        best[kind] = min(best.get(kind, mine), mine)
      found[site] = [
        each[place] for _, place in sorted(best.values(), key=lambda b: b[1])
      ]
    return found

  def _distance(self, row: Mapping[str, Any]) -> float:
    l0 = row["l0"]["mean"] if row["l0"] else 0.0
    target = self.config.evaluate.target_l0
    return abs(np.log(max(l0, 1e-9) / target))

  def provenance(self) -> dict[str, Any]:
    """What every result says: tokens, model, hashes, policy, settings, code."""
    lm = self.lm
    names = settings.sources(self.config)
    return {
      "tokens": {
        "sequences": len(self.tokens),
        "length": int(self.tokens.shape[1]),
        "counted": int(self.policy.keep(self.tokens).sum()),
        "split": "held_out",
        "sources": list(names),
        "licences": {name: texts.licence(name) for name in names},
        "hash": artifacts.sha256_arrays([self.tokens]),
      },
      "model": {
        "label": lm.label,
        "weights_hash": lm.weights_hash,
        "tokenizer": lm.tokenizer.fingerprint,
      },
      "hashes": {
        one.name: weights_hash(one.sae) for one in (*self.every(), *self.tuned)
      },
      "token_policy": self.policy.to_dict(),
      "config": settings.resolved(self.config),
      "code": artifacts.code_version(),
    }


def make(config: Config, given: Sequence[str]) -> Bench:
  """The bench of one command.

  Args:
    config: the settings.
    given: SAEs as "PATH", "SITE=PATH" or "NAME:SITE=PATH"; none: the run's, or
      those of all its runs.

  Raises:
    ValueError: an SAE that does not belong to the model, or to no site.
    FileNotFoundError: no SAE at a path, or the run has not finished.
  """
  lm = settings.load_lm(config)
  rows, untrained = None, {}
  if given:
    subjects = [read_subject(each) for each in given]
    with contextlib.suppress(FileNotFoundError):
      rows = activations.open_rows(config)
    policy = settings.token_policy(config, lm.tokenizer)
    tuned = [each for each in subjects if _is_of_another(each, config, lm)]
    subjects = [each for each in subjects if each not in tuned]
  else:
    subjects, tuned = [], []
    for name, one in runs.runs(config).items():
      found, start = _trained(name, one)
      if _lm_of(one) == _lm_of(config):
        subjects += found
        untrained.setdefault(start.config.site, start)
      else:
        tuned += found
    rows = activations.open_rows(config)
    policy = rows.policy
  for each in subjects:
    each.check(lm, policy)
  return Bench(
    config=config,
    lm=lm,
    policy=policy,
    tokens=held_out(config, lm, None if rows is None else rows.keys),
    subjects=by_site(subjects),
    tuned=tuned,
    folder=settings.workdir(config) / PARTS,
    rows_store=rows,
    untrained=untrained,
    given=bool(given),
  )


def _lm_of(config: Config) -> tuple[str, str]:
  return config.lm.source, config.lm.get("delta", "")


def _is_of_another(one: Subject, config: Config, lm) -> bool:
  """Whether an SAE may be of the instruction-tuned model."""
  instruct = config.studies.instruct
  made_with = one.sae.config.details().get("weights_hash")
  named = bool(instruct.source or instruct.delta)
  return named and made_with not in (None, lm.weights_hash)


def _trained(name: str, config: Config) -> tuple[list[Subject], sae.SAE]:
  """A run's SAEs, and one before its first step."""
  if len(settings.input_sites(config)) > 1:
    raise ValueError(
      f"train.site is {config.train.site}: a crosscoder, which the studies"
      " can't splice"
    )
  finished = members.finished_members(config)
  prefix = f"{name}/" if name else ""
  subjects = [
    subject(sae.load(member.finished), prefix + member.name)
    for member in finished
  ]
  return subjects, sae.load(finished[0].initial)


def held_out(config: Config, lm, trained_on: np.ndarray | None) -> np.ndarray:
  """Held-out sequences, int32 [S, T].

  Args:
    config: the settings.
    lm: its tokenizer.
    trained_on: keys of the documents that the SAEs were trained on, none of
      which may be there; None: not known.

  Raises:
    ValueError: one of them is there.
  """
  stride = config.evaluate.stride
  windows = packing.pack(
    settings.mixed_documents(config, "held_out"),
    lm.tokenizer,
    config.data.window,
    windows=config.evaluate.sequences * stride,
    packed=config.data.packed,
    chat=settings.chat_template(config, lm.tokenizer),
  )
  if trained_on is not None:
    shared = np.isin(windows.keys, trained_on).sum()
    if shared:
      raise ValueError(
        f"{shared} of the held-out documents are among those that the SAEs were"
        " trained on: evaluate with the data.held_out and sources of the"
        " harvest"
      )
  return windows.tokens[::stride]

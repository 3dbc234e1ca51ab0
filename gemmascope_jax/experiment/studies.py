"""Studies of SAEs, a run's own or any others, by one command.

Passes of the language model are shared: what is measured of an SAE on the same
tokens is kept, and every study that needs it reads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from gemmascope_jax import artifacts, sae
from gemmascope_jax.data.text import texts
from gemmascope_jax.data.tokens import packing
from gemmascope_jax.experiment import activations, members, settings
from gemmascope_jax.experiment.settings import Config
from gemmascope_jax.gemma import sites
from gemmascope_jax.report import studies as study_report
from gemmascope_jax.studies import (
  frequency,
  interpretability,
  measure,
  position,
  side_by_side,
  site_means,
  uniformity,
  width,
)
from gemmascope_jax.studies.replacements import Constant
from gemmascope_jax.studies.subjects import Subject, by_site, subject

# In the paper's order.
STUDIES = (
  "fidelity",
  "position",
  "width",
  "frequency",
  "interpretability",
  "uniformity",
)
_UNTRAINED = "untrained"
_CONTEXT = 32  # tokens of a context that is explained or simulated
_RESULTS, _REPORT, _PARTS = "results/studies", "report/studies", "results/parts"


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
  """What all studies of one command share.

  Attributes:
    config: the settings.
    lm: the language model.
    policy: which tokens count.
    tokens: int32 [S, T], held-out sequences.
    subjects: the SAEs of each site that they replace.
    folder: for what is measured.
    rows_store: activations with their tokens, of the run's training; None if SAEs
      were given and the run has none.
    untrained: an SAE of the run before its first step, or None.
  """

  config: Config
  lm: Any
  policy: Any
  tokens: np.ndarray
  subjects: dict[str, list[Subject]]
  folder: pathlib.Path
  rows_store: Any
  untrained: sae.SAE | None

  def rows(self) -> list[dict[str, Any]]:
    """A description of each SAE."""
    return [s.describe() for each in self.subjects.values() for s in each]

  def measured(self) -> dict[str, Any]:
    """Of each site the record, and each SAE's and ablation's."""
    names = list(self.subjects)
    means = site_means.means(
      self.lm,
      names,
      self.tokens,
      self.policy,
      self.folder,
      batch=self.config.evaluate.batch,
      progress=self.config.progress,
    )
    found = {}
    for site, subjects in self.subjects.items():
      mean = means[site]
      replacements = {s.name: s.replacement() for s in subjects} | {
        side_by_side.ZERO: Constant(jnp.zeros(len(mean))),
        side_by_side.MEAN: Constant(jnp.asarray(mean, jnp.float32)),
      }
      found[site] = measure.measure(
        self.lm,
        site,
        replacements,
        self.tokens,
        self.policy,
        mean,
        self.folder,
        batch=self.config.evaluate.batch,
        progress=self.config.progress,
      )
    return found


def study(
  config: Config, names: Sequence[str], given: Sequence[str] = ()
) -> dict[str, Any]:
  """Runs studies and draws their figures.

  Writes `results/studies/NAME.json` and `report/studies/` below the work
  directory; the page there shows every study whose result lies there.

  Args:
    config: says which model, texts and how many sequences; and, if no SAEs are
      given, whose run they are of.
    names: some of `STUDIES`, or "all".
    given: SAEs as "PATH", "SITE=PATH" or "NAME:SITE=PATH"; none: the run's.

  Returns:
    {"results": {name: result}, "page": path}.

  Raises:
    ValueError: an unknown study, an SAE that does not belong to the model, or
      to no site; and what loading raises.
    FileNotFoundError: no SAE at a path, or the run has not finished.
  """
  everything = "all" in names
  names = list(STUDIES) if everything else list(dict.fromkeys(names))
  unknown = [name for name in names if name not in STUDIES]
  if unknown or not names:
    raise ValueError(
      f"study {', '.join(map(repr, unknown)) or '(none)'}: expected some of"
      f" {', '.join(STUDIES)}, or all"
    )
  settings.check(config)
  bench = _bench(config, given)
  if everything:
    names = [name for name in names if not _lacks(name, bench)]
  workdir = settings.workdir(config)
  results = {}
  for name in names:
    # What a study says itself of its tokens counts: some read the store.
    result = _provenance(bench) | _run(name, bench)
    artifacts.write_json(workdir / _RESULTS / f"{name}.json", result)
    results[name] = result
  page = study_report.build(workdir / _RESULTS, workdir / _REPORT, STUDIES)
  return {"results": results, "page": page}


def _lacks(name: str, bench: Bench) -> bool:
  """Whether "all" leaves a study out, and says so."""
  widths = {s.sae.width for each in bench.subjects.values() for s in each}
  if name == "width" and len(widths) < 2:
    logging.warning("study 'width' is left out: all SAEs have one width")
    return True
  return False


def _run(name: str, bench: Bench) -> dict[str, Any]:
  found, said = {
    "fidelity": _fidelity,
    "position": _position,
    "width": _width,
    "frequency": _frequency,
    "interpretability": _interpretability,
    "uniformity": _uniformity,
  }[name](bench)
  return found | {"findings": [dataclasses.asdict(each) for each in said]}


def _fidelity(bench: Bench):
  found = side_by_side.result(bench.rows(), bench.measured())
  return found, side_by_side.findings(found)


def _position(bench: Bench):
  measured, rows, records = bench.measured(), [], {}
  for row in bench.rows():
    record, spliced = measured[row["site"]]
    one = spliced[row["name"]]
    l0 = one.l0(record)
    rows.append(row | {"l0": l0 and l0.to_dict()})
    records[row["name"]] = (record, one)
  found = position.result(rows, records)
  return found, position.findings(found)


def _width(bench: Bench):
  site, saes = _of_one_site(bench, "width")
  record, spliced = bench.measured()[site]
  found = width.run(
    saes,
    bench.rows_store,
    site,
    rows=bench.config.evaluate.context_rows,
    delta_loss={name: spliced[name].delta_loss(record) for name in saes},
    arrays=settings.workdir(bench.config) / _RESULTS / "width.npz",
    progress=bench.config.progress,
  )
  found["tokens"] |= _trained_on(bench)
  return found, width.findings(found)


def _frequency(bench: Bench):
  site, saes = _of_one_site(bench, "frequency")
  found = frequency.run(
    saes,
    bench.rows_store,
    site,
    rows=bench.config.evaluate.context_rows,
    arrays=settings.workdir(bench.config) / _RESULTS / "frequency.npz",
    progress=bench.config.progress,
  )
  found["tokens"] |= _trained_on(bench)
  return found, frequency.findings(found)


def _interpretability(bench: Bench):
  """Explained and simulated by token statistics: no language model is asked."""
  _, saes = _of_one_site(bench, "interpretability")
  if bench.untrained is not None:
    saes = saes | {_UNTRAINED: bench.untrained}
  evaluate = bench.config.evaluate
  length = min(_CONTEXT, bench.rows_store.tokens.shape[1] // 2)
  gather = functools.partial(
    interpretability.gather,
    store=bench.rows_store,
    design=interpretability.Design(latents=evaluate.latents, length=length),
    rows=min(evaluate.context_rows, bench.rows_store.rows),
    seed=bench.config.seed,
    folder=bench.folder / "interpretability",
    progress=bench.config.progress,
  )
  statistics = interpretability.TokenStatistics(tokenizer=bench.lm.tokenizer)
  found = interpretability.run(
    saes,
    gather,
    statistics,
    statistics,
    bench.folder / "interpretability",
    untrained=[_UNTRAINED] if bench.untrained is not None else [],
    seed=bench.config.seed,
    progress=bench.config.progress,
  )
  counted = max(row["tokens"] for row in found["saes"])
  found["tokens"] = {"counted": counted} | _trained_on(bench)
  return found, interpretability.findings(found)


def _uniformity(bench: Bench):
  saes = {
    site: {s.name: s.sae for s in each} for site, each in bench.subjects.items()
  }
  _require_no_transcoder(bench, "uniformity")
  found = uniformity.run(
    bench.lm,
    saes,
    bench.tokens,
    policy=bench.policy,
    batch=bench.config.evaluate.batch,
    folder=bench.folder,
    progress=bench.config.progress,
  )
  del found["tokens"]  # said for all studies alike
  return found, uniformity.findings(found)


def _of_one_site(bench: Bench, name: str) -> tuple[str, dict[str, sae.SAE]]:
  """The site and SAEs of a study that reads a store."""
  _require_no_transcoder(bench, name)
  if len(bench.subjects) > 1:
    raise ValueError(
      f"study {name!r} is of SAEs of one site; given are some of"
      f" {', '.join(bench.subjects)}: run it for each site"
    )
  ((site, subjects),) = bench.subjects.items()
  if bench.rows_store is None:
    raise ValueError(
      f"study {name!r} reads activations of a store, and this workdir has"
      " none: harvest first, or name one with --config.data.source=PATH"
    )
  return site, {s.name: s.sae for s in subjects}


def _trained_on(bench: Bench) -> dict[str, Any]:
  """Of what text a store's rows are: such as the SAEs were trained on."""
  return {
    "split": "train",
    "sources": list(settings.sources(bench.config)),
    "store": bench.rows_store.fingerprint,
  }


def _require_no_transcoder(bench: Bench, name: str) -> None:
  if any(s.is_transcoder for each in bench.subjects.values() for s in each):
    raise ValueError(
      f"study {name!r} is of SAEs, but a transcoder is among them: leave it out"
    )


def _bench(config: Config, given: Sequence[str]) -> Bench:
  lm = settings.load_lm(config)
  rows = untrained = None
  if given:
    subjects = [_parse(each) for each in given]
    with contextlib.suppress(FileNotFoundError):
      rows = activations.open_rows(config)
    policy = settings.token_policy(config, lm.tokenizer)
  else:
    if len(settings.input_sites(config)) > 1:
      raise ValueError(
        f"train.site is {config.train.site}: a crosscoder, which the studies"
        " can't splice"
      )
    finished = members.finished_members(config)
    subjects = [
      subject(sae.load(member.finished), member.name) for member in finished
    ]
    untrained = sae.load(finished[0].initial)
    rows = activations.open_rows(config)
    policy = rows.policy
  for each in subjects:
    each.check(lm, policy)
  return Bench(
    config=config,
    lm=lm,
    policy=policy,
    tokens=_held_out(config, lm, None if rows is None else rows.keys),
    subjects=by_site(subjects),
    folder=settings.workdir(config) / _PARTS,
    rows_store=rows,
    untrained=untrained,
  )


def _parse(given: str) -> Subject:
  """An SAE from "PATH", "SITE=PATH" or "NAME:SITE=PATH"."""
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
  return subject(sae.load(path), name, site or None)


def _held_out(config: Config, lm, trained_on: np.ndarray | None) -> np.ndarray:
  """Held-out sequences, int32 [S, T].

  Args:
    config: the settings.
    lm: its tokenizer.
    trained_on: keys of the documents that the SAEs were trained on, none of
      which may be there; None: not known.
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


def _provenance(bench: Bench) -> dict[str, Any]:
  config, lm = bench.config, bench.lm
  names = settings.sources(config)
  return {
    "tokens": {
      "sequences": len(bench.tokens),
      "length": int(bench.tokens.shape[1]),
      "counted": int(bench.policy.keep(bench.tokens).sum()),
      "split": "held_out",
      "sources": list(names),
      "licences": {name: texts.licence(name) for name in names},
      "hash": artifacts.sha256_arrays([bench.tokens]),
    },
    "model": {
      "label": lm.label,
      "weights_hash": lm.weights_hash,
      "tokenizer": lm.tokenizer.fingerprint,
    },
    "hashes": {
      s.name: artifacts.sha256_arrays(
        vars(s.sae.params)[key]
        for key in ("w_enc", "b_enc", "w_dec", "b_dec", "threshold")
      )
      for each in bench.subjects.values()
      for s in each
    },
    "token_policy": bench.policy.to_dict(),
    "config": settings.resolved(config),
    "code": artifacts.code_version(),
  }

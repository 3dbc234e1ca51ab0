"""Studies of SAEs, a run's own or any others, by one command."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from gemmascope_jax import artifacts, sae
from gemmascope_jax.data.text import subsets as corpora
from gemmascope_jax.data.tokens import subset_windows
from gemmascope_jax.experiment import (
  bench as benches,
)
from gemmascope_jax.experiment import (
  explaining,
  instructing,
  runs,
  settings,
)
from gemmascope_jax.experiment.bench import Bench
from gemmascope_jax.experiment.settings import Config
from gemmascope_jax.report import studies as study_report
from gemmascope_jax.studies import (
  frequency,
  interpretability,
  position,
  precision,
  side_by_side,
  subsets,
  transcoders,
  uniformity,
  width,
)
from gemmascope_jax.studies.findings import Finding

# In the paper's order.
STUDIES = (
  "fidelity",
  "position",
  "width",
  "frequency",
  "interpretability",
  "instruct",
  "subsets",
  "precision",
  "transcoders",
  "uniformity",
)
_UNTRAINED = "untrained"
_CONTEXT = 32  # tokens of a context that is explained or simulated
_RESULTS, _REPORT = "results/studies", "report/studies"
_RATINGS = "ratings"  # sheets for people

Found = tuple[dict[str, Any], list[Finding]]


class LacksError(ValueError):
  """A study lacks what it is about; "all" leaves it out."""


def study(
  config: Config, names: Sequence[str], given: Sequence[str] = ()
) -> dict[str, Any]:
  """Runs studies and draws their figures.

  Writes `results/studies/NAME.json` and `report/studies/` below the work
  directory; the page there shows every study whose result lies there.

  Args:
    config: says which model, texts and how many sequences; and, if no SAEs are
      given, whose run, or runs, they are of.
    names: some of `STUDIES`, or "all".
    given: SAEs as "PATH", "SITE=PATH" or "NAME:SITE=PATH"; none: the run's.

  Returns:
    {"results": {name: result}, "left_out": {name: why}, "page": path,
    "seconds": {name: seconds}}.

  Raises:
    ValueError: an unknown study, an SAE that does not belong to the model, or
      to no site; and what loading raises.
    LacksError: a study that was asked for by name has nothing to be about.
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
  for each in runs.runs(config).values():
    settings.check(each)
  bench = benches.make(config, given)
  workdir = settings.workdir(config)
  results, left_out, seconds = {}, {}, {}
  for number, name in enumerate(names, 1):
    if config.progress:
      spent = sum(seconds.values())
      print(
        f"\n[{number}/{len(names)}] {name} ({spent:.0f} s until now)",
        flush=True,
      )
    start = time.monotonic()
    try:
      found, said = _STUDIES[name](bench)
    except LacksError as error:
      if not everything:
        raise
      logging.warning("study %r is left out: %s", name, error)
      left_out[name] = str(error)
      continue
    # What a study says itself of its tokens and its model counts: some read the
    # store, or have texts of their own.
    result = bench.provenance() | found
    result["findings"] = [dataclasses.asdict(each) for each in said]
    artifacts.write_json(workdir / _RESULTS / f"{name}.json", result)
    results[name] = result
    seconds[name] = time.monotonic() - start
  page = study_report.build(workdir / _RESULTS, workdir / _REPORT, STUDIES)
  return {
    "results": results,
    "left_out": left_out,
    "page": page,
    "seconds": seconds,
  }


def _fidelity(bench: Bench) -> Found:
  found = side_by_side.result(bench.rows(), bench.measured())
  return found, side_by_side.findings(found)


def _position(bench: Bench) -> Found:
  measured, subjects = bench.measured(), _few_of_each_site(bench)
  records = {
    one.name: (measured[one.site][0], measured[one.site][1][one.name])
    for one in subjects
  }
  found = position.result(bench.with_l0(subjects), records)
  return found, position.findings(found)


def _width(bench: Bench) -> Found:
  site, saes = _of_one_site(bench, "width")
  widths: dict[str, set[int]] = {}
  for one in saes.values():
    widths.setdefault(one.config.family, set()).add(one.width)
  saes = {n: s for n, s in saes.items() if len(widths[s.config.family]) > 1}
  if not saes:
    raise LacksError(f"all SAEs of a family at {site} have one width")
  spliced = bench.measured()[site]
  found = width.run(
    saes,
    bench.rows_store,
    site,
    rows=bench.config.evaluate.context_rows,
    delta_loss={n: spliced[1][n].delta_loss(spliced[0]) for n in saes},
    arrays=settings.workdir(bench.config) / _RESULTS / "width.npz",
    progress=bench.config.progress,
  )
  found["tokens"] |= _trained_on(bench)
  return found, width.findings(found)


def _frequency(bench: Bench) -> Found:
  site, _ = _of_one_site(bench, "frequency")
  saes = {s.name: s.sae for s in bench.chosen("family", "width")[site]}
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


def _interpretability(bench: Bench) -> Found:
  site, _ = _of_one_site(bench, "interpretability")
  saes = {s.name: s.sae for s in bench.chosen("family")[site]}
  untrained = [_UNTRAINED] if site in bench.untrained else []
  if untrained:
    saes = saes | {_UNTRAINED: bench.untrained[site]}
  config = bench.config
  length = min(_CONTEXT, bench.rows_store.tokens.shape[1] // 2)
  gather = functools.partial(
    interpretability.gather,
    store=bench.rows_store,
    design=interpretability.Design(
      latents=config.evaluate.latents, length=length
    ),
    rows=min(config.evaluate.context_rows, bench.rows_store.rows),
    seed=config.seed,
    folder=bench.folder / "interpretability",
    progress=config.progress,
  )
  explainer, simulator = explaining.judges(config, bench.lm, bench.folder)
  found = interpretability.run(
    saes,
    gather,
    explainer,
    simulator,
    bench.folder / "interpretability",
    untrained=untrained,
    seed=config.seed,
    most_dollars=config.studies.most_dollars or None,
    progress=config.progress,
  )
  counted = max(row["tokens"] for row in found["saes"])
  found["tokens"] = {"counted": counted} | _trained_on(bench)
  table = explaining.people(
    config,
    found,
    {name: gather(one).samples for name, one in saes.items()},
    bench.lm.tokenizer,
    settings.workdir(config) / _RATINGS,
  )
  if table is not None:
    found["ratings"] = table
  return found, interpretability.findings(found)


def _instruct(bench: Bench) -> Found:
  options = bench.config.studies.instruct
  if not (options.source or options.delta):
    raise LacksError(
      "studies.instruct names no instruction-tuned model: give its source, or"
      " the delta of a fine-tune (python -m experiments.finetune)"
    )
  return instructing.run(bench)


def _subsets(bench: Bench) -> Found:
  config, options = bench.config, bench.config.studies
  try:
    if options.subset_source:
      corpus = corpora.pile(
        options.subset_source, held_out=config.data.held_out
      )
    else:
      corpus = corpora.stand_ins(
        config.data.packages or None,
        held_out=config.data.held_out,
        seed=config.seed,
      )
  except FileNotFoundError as error:
    raise LacksError(str(error)) from error
  made = subset_windows.make(
    corpus,
    bench.lm.tokenizer,
    sequences=options.subset_sequences,
    window=config.data.window,
    trained_on=settings.sources(config),
    exclude_keys=None if bench.rows_store is None else bench.rows_store.keys,
    progress=config.progress,
  )
  subjects = bench.chosen()
  if not subjects:
    raise LacksError("all that is given are transcoders")
  records, counted = {}, 0
  for name, windows in made.windows.items():
    measured = bench.measured(subjects, windows.tokens)
    records[name] = {
      one.name: (measured[site][0], measured[site][1][one.name])
      for site, each in subjects.items()
      for one in each
    }
    counted += int(bench.policy.keep(windows.tokens).sum())
  every = [one for each in subjects.values() for one in each]
  found = subsets.result(bench.with_l0(every), records, made.to_dict())
  found["tokens"] = {
    "sequences": len(made.windows) * options.subset_sequences,
    "length": config.data.window,
    "counted": counted,
    "sources": [options.subset_source]
    if options.subset_source
    else sorted({s for each in made.subsets.values() for s in each.sources}),
  }
  return found, subsets.findings(found)


def _precision(bench: Bench) -> Found:
  """Of one site, since every format of the model is a model of its own."""
  dtype = bench.config.lm.dtype
  if dtype != "float32":
    raise LacksError(
      f"lm.dtype is {dtype}: expected float32, which formats are compared with"
    )
  subjects = bench.subjects
  if not bench.given:
    site = max(subjects, key=lambda each: len(subjects[each]))
    subjects = {site: bench.chosen().get(site) or subjects[site][:1]}
  found = precision.run(
    bench.lm,
    subjects,
    bench.tokens,
    bench.policy,
    bench.folder,
    batch=bench.config.evaluate.batch,
    progress=bench.config.progress,
  )
  return found, precision.findings(found)


def _transcoders(bench: Bench) -> Found:
  where = {one.site for one in bench.every() if one.is_transcoder}
  if not where:
    raise LacksError("no transcoder is among the SAEs")
  found = transcoders.result(
    [row for row in bench.rows() if row["site"] in where], bench.measured()
  )
  return found, transcoders.findings(found)


def _uniformity(bench: Bench) -> Found:
  saes = _saes(bench, "uniformity")
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


_STUDIES: dict[str, Callable[[Bench], Found]] = {
  "fidelity": _fidelity,
  "position": _position,
  "width": _width,
  "frequency": _frequency,
  "interpretability": _interpretability,
  "instruct": _instruct,
  "subsets": _subsets,
  "precision": _precision,
  "transcoders": _transcoders,
  "uniformity": _uniformity,
}


def _saes(bench: Bench, name: str) -> dict[str, dict[str, sae.SAE]]:
  """The SAEs of each site, by name: a study that transcoders can't be in."""
  found = {
    site: {s.name: s.sae for s in each if not s.is_transcoder}
    for site, each in bench.subjects.items()
  }
  left = [one.name for one in bench.every() if one.is_transcoder]
  if left:
    logging.warning(
      "study %r is of SAEs: transcoders (%s) are left out", name, len(left)
    )
  found = {site: each for site, each in found.items() if each}
  if not found:
    raise LacksError("all that is given are transcoders")
  return found


def _few_of_each_site(bench: Bench) -> list:
  """All, but of a site with more than four the one nearest the target L0."""
  few = bench.chosen()
  return [
    one
    for site, each in bench.subjects.items()
    for one in (each if len(each) <= 4 or site not in few else few[site])
    if not one.is_transcoder or bench.given
  ]


def _of_one_site(bench: Bench, name: str) -> tuple[str, dict[str, sae.SAE]]:
  """The site with most SAEs, and these: for a study that reads a store."""
  every = _saes(bench, name)
  if bench.rows_store is None:
    raise LacksError(
      f"study {name!r} reads activations of a store, and this workdir has"
      " none: harvest first, or name one with --config.data.source=PATH"
    )
  site = max(every, key=lambda each: len(every[each]))
  if len(every) > 1:
    logging.warning(
      "study %r is of one site: %s, which has most SAEs", name, site
    )
  return site, every[site]


def _trained_on(bench: Bench) -> dict[str, Any]:
  """Of what text a store's rows are: such as the SAEs were trained on."""
  return {
    "split": "train",
    "sources": list(settings.sources(bench.config)),
    "store": bench.rows_store.fingerprint,
  }

"""SAEs, the language model, and both, in each number format (paper, 4.7, D.4).

Figure 10 shows delta loss against L0 in float32 and bfloat16. What a format
does is far smaller than how much one text differs from another, so each metric
is given with its paired difference to float32, in which the text cancels.

A metric whose numbers are not all finite is None, and `not_finite` says in how
many sequences: Gemma's residual stream may overflow float16.

Letters: S sequences, T tokens.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.studies import measure, site_means
from gemmascope_jax.studies.estimate import paired_difference, ratio
from gemmascope_jax.studies.precision import lm as lms
from gemmascope_jax.studies.precision import low_precision, speed
from gemmascope_jax.studies.precision.flips import flips
from gemmascope_jax.studies.precision.formats import FORMATS, check
from gemmascope_jax.studies.records import (
  SiteRecord,
  SpliceRecord,
  masked_sum,
)
from gemmascope_jax.studies.replacements import Replacement
from gemmascope_jax.studies.subjects import Subject

STUDY = "precision"
EXACT = "float32"

Sums = dict[str, tuple[np.ndarray, np.ndarray]]


def run(
  lm,
  subjects_by_site: Mapping[str, Sequence[Subject]],
  tokens: np.ndarray,
  policy: TokenPolicy,
  folder: str | os.PathLike,
  *,
  batch: int = 8,
  formats: Sequence[str] = FORMATS,
  lm_formats: Sequence[str] = FORMATS[1:],
  progress: bool = True,
) -> dict[str, Any]:
  """Measures SAEs in each format, alone and with the model in it.

  Args:
    lm: a `Gemma` with all its layers, in float32.
    subjects_by_site: the SAEs of each site that they replace.
    tokens: int32 [S, T].
    policy: which tokens count.
    folder: for what is measured. Float32 is measured as for the fidelity study,
      so what that has measured is not measured again.
    batch: sequences a forward pass.
    formats: of the SAEs; float32 is measured in any case.
    lm_formats: of the language model. Where a format is among both, SAE and
      model are measured in it together as well.
    progress: show progress bars.

  Returns:
    {"study": "precision", "format": 1, "saes", "lm", "speed"}, JSON-ready.

    Of each SAE: what `Subject.describe` says; "float32", its metrics
    "delta_loss", "fvu", "l0" and "clean_loss" (the model's own loss); "rows",
    each of a "format" and what is "in_format" ("sae", "lm" or "both") with the
    same metrics, their differences "less_float32", "flips" (see `flips`) and
    "not_finite"; "bytes" and "seconds_per_1024_tokens", by format.

    Of the model in each format, float32 first: "label", "bytes", "clean_loss" and
    "clean_loss_less_float32".

  Raises:
    ValueError: an unknown format, or a model that is not float32.
  """
  lms.check(lm)
  for each in (*formats, *lm_formats):
    check(each)
  formats = [each for each in dict.fromkeys(formats) if each != EXACT]
  bench = _Bench.of(
    lm, subjects_by_site, tokens, policy, folder, batch, formats, progress
  )
  exact = bench.sums(lm, formats)
  rows = {
    s.name: [
      _row(exact[s.name, EXACT], exact[s.name, format], format, "sae", share)
      for format, share in bench.flips(s, formats).items()
    ]
    for s in bench.subjects
  }
  first = bench.subjects[0].name, EXACT
  models = [_model(lm, lm, EXACT, exact[first], exact[first])]
  for format in dict.fromkeys(lm_formats):
    model = lms.lm_in(lm, format)
    both = [format] if format in formats else []
    found = bench.sums(model, both)
    if format != EXACT:
      models.append(_model(lm, model, format, exact[first], found[first]))
    for s in bench.subjects:
      for each, share in bench.flips(s, [EXACT, *both], model).items():
        where = "lm" if each == EXACT else "both"
        sums = exact[s.name, EXACT], found[s.name, each]
        rows[s.name].append(_row(*sums, format, where, share))
  return {
    "study": STUDY,
    "format": 1,
    "saes": [
      s.describe()
      | {
        "float32": _metrics(exact[s.name, EXACT]),
        "rows": rows[s.name],
        "bytes": {
          format: low_precision.nbytes(s.sae, format)
          for format in (EXACT, *formats)
        },
        "seconds_per_1024_tokens": bench.seconds(s, [EXACT, *formats]),
      }
      for s in bench.subjects
    ],
    "lm": models,
    "speed": {"tokens": speed.TOKENS, "device": speed.device()},
  }


@dataclasses.dataclass(frozen=True, eq=False)
class _Bench:
  """What all passes share.

  Attributes:
    replacements: by the SAE's name and format.
    means: of each site, by the float32 model.
    options: of every pass.
  """

  lm: Any
  by_site: Mapping[str, Sequence[Subject]]
  tokens: np.ndarray
  policy: TokenPolicy
  folder: Any
  replacements: dict[tuple[str, str], Replacement]
  means: dict[str, np.ndarray]
  options: dict[str, Any]

  @classmethod
  def of(cls, lm, by_site, tokens, policy, folder, batch, formats, progress):
    """With every SAE in every format, on the device."""
    options = {"batch": batch, "progress": progress}
    replacements: dict[tuple[str, str], Replacement] = {}
    for s in (s for each in by_site.values() for s in each):
      own = replacements[s.name, EXACT] = s.replacement()
      for format in formats:
        low = low_precision.in_format(own.sae, format, own.reads)
        replacements[s.name, format] = low
    means = site_means.means(
      lm, list(by_site), tokens, policy, folder, **options
    )
    return cls(
      lm, by_site, tokens, policy, folder, replacements, means, options
    )

  @property
  def subjects(self) -> list[Subject]:
    return [s for each in self.by_site.values() for s in each]

  def sums(self, model, formats) -> dict[tuple[str, str], Sums]:
    """Of each SAE in float32 and formats, spliced into a model."""
    found = {}
    for site, subjects in self.by_site.items():
      keys = [(s.name, f) for f in (EXACT, *formats) for s in subjects]
      names = {f"{name} in {format}": (name, format) for name, format in keys}
      # What overflows is no mistake here: it is what is looked for.
      with np.errstate(over="ignore", invalid="ignore"):
        record, spliced = measure.measure(
          model,
          site,
          {name: self.replacements[key] for name, key in names.items()},
          self.tokens,
          self.policy,
          self.means[site],
          self.folder,
          **self.options,
        )
        for name, key in names.items():
          found[key] = _sums(record, spliced[name])
    return found

  def flips(self, subject: Subject, formats, model=None):
    """By format, of an SAE whose second one reads a model's activations."""
    of = lambda format: self.replacements[subject.name, format]
    found = flips(
      self.lm,
      subject.reads,
      {format: (of(EXACT), of(format)) for format in formats},
      self.tokens,
      self.policy,
      self.folder,
      other=model,
      **self.options,
    )
    return {key: each and each.to_dict() for key, each in found.items()}

  def seconds(self, subject: Subject, formats) -> dict[str, float]:
    """By format, of encoding and decoding 1,024 tokens."""
    return {
      format: speed.seconds(
        self.replacements[subject.name, format],
        subject.sae.site_width,
        self.folder,
      )
      for format in formats
    }


def _sums(record: SiteRecord, spliced: SpliceRecord) -> Sums:
  """Each metric's sums of each sequence, and their weights."""
  errors = masked_sum(spliced.squared_error, record.keep)
  active = masked_sum(spliced.active, record.keep)
  return {
    "delta_loss": (spliced.rise(record), record.loss_count),
    "fvu": (errors, record.variance()),
    # Of what is not a number, no latent is active: that is not sparse.
    "l0": (np.where(np.isfinite(errors), active, np.nan), record.count),
    "clean_loss": (
      masked_sum(record.loss_clean, record.keep_loss),
      record.loss_count,
    ),
  }


def _finite(*arrays) -> bool:
  return all(np.isfinite(each).all() for each in arrays)


def _metrics(sums: Sums) -> dict[str, Any]:
  """Each metric's estimate; None if it is not finite."""
  return {
    name: ratio(*each).to_dict() if _finite(*each) else None
    for name, each in sums.items()
  }


def _less(sums: Sums, exact: Sums) -> dict[str, Any]:
  """Each metric's paired difference; None if it is not finite."""
  return {
    name: paired_difference(*each, *exact[name]).to_dict()
    if _finite(*each, *exact[name])
    else None
    for name, each in sums.items()
  }


def _row(exact: Sums, sums: Sums, format, where, share) -> dict[str, Any]:
  return {
    "format": format,
    "in_format": where,
    **_metrics(sums),
    "less_float32": _less(sums, exact),
    "flips": share,
    "not_finite": _not_finite(sums, format),
  }


def _not_finite(sums: Sums, format: str) -> dict[str, Any] | None:
  """In how many sequences something is not finite, and why; None if in none."""
  bad = ~np.isfinite([numerators for numerators, _ in sums.values()])
  if not bad.any():
    return None
  own = bad[list(sums).index("clean_loss")].any()
  what = "the language model's own loss" if own else "the reconstruction"
  return {
    "sequences": int(bad.any(axis=0).sum()),
    "of": int((sums["l0"][1] > 0).sum()),
    "reason": f"{what} is not finite: numbers overflow {format}",
  }


def _model(lm, model, format, exact: Sums, sums: Sums) -> dict[str, Any]:
  only = lambda s: {"clean_loss": s["clean_loss"]}
  return {
    "format": format,
    "label": model.label,
    "weights_hash": model.weights_hash,
    "bytes": lms.nbytes(lm, format),
    "clean_loss": _metrics(only(sums))["clean_loss"],
    "clean_loss_less_float32": _less(only(sums), only(exact))["clean_loss"],
  }

"""Measures ladders of SAEs in one pass over the rows.

A ladder is SAEs of growing width and equal sparsity coefficient. The paper
shows fidelity against L0 (figure 4) and firing frequencies (figure 5) for
ladders, and names feature splitting and learned compositions as the caveats of
width; each step of a ladder is looked at for those, see `stitching`.

Letters: D width of the site, M latents.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.studies import activity, frequency
from gemmascope_jax.studies.activity.sample import BLOCK
from gemmascope_jax.studies.estimate import Estimate
from gemmascope_jax.studies.width import dark_matter
from gemmascope_jax.studies.width import fidelity as fidelity_
from gemmascope_jax.studies.width.matching import Activity
from gemmascope_jax.studies.width.steps import Step

STUDY = "width"
COFIRING_ROWS = 200_000


def run(
  saes: Mapping[str, SAE],
  store,
  site: str,
  *,
  rows: int | None = None,
  ladders: Mapping[str, Sequence[str]] | None = None,
  delta_loss: Mapping[str, Estimate | dict] | None = None,
  arrays: str | os.PathLike | None = None,
  cofiring_rows: int = COFIRING_ROWS,
  block: int = BLOCK,
  progress: bool = True,
) -> dict[str, Any]:
  """Measures ladders of widths.

  Rows that the SAEs were trained on flatter the wide ones: give a store of
  other text where there is one.

  Args:
    saes: SAEs of the site by name, of several widths.
    store: activations with their tokens.
    site: where.
    rows: rows of the store, from its first; None: all.
    ladders: by a label, names of SAEs of growing width; None: a ladder for each
      sparsity coefficient in the SAEs' provenance, of all if none has one.
    delta_loss: by name, nats a token, as the fidelity study measures it.
    arrays: an `.npz` for the numbers of single latents: frequencies, and of
      every step, "NARROW|WIDE|" with "cosine", "parent", "change",
      "change_stderr", "class" of wide latents, "children", "child_cosine",
      "partner" and "jaccard" of narrow ones; None: no file.
    cofiring_rows: first rows on which firing together is counted; they are
      remembered, four bytes for each active latent.
    block: rows at a time; of no effect but on rounding.
    progress: show a progress bar.

  Returns:
    {"study": "width", "format": 1, ...}, JSON-ready: "saes", as of the
    frequency study with "fvu" and, if given, "delta_loss", "linear_error";
    "ladders", each with its "steps" (see `steps.Step.result`), "law" (see
    `dark_matter.fit`) and "mode_changes"; "equal_l0", the comparisons of
    `fidelity.at_equal_l0`.

  Raises:
    ValueError: SAEs of another site or width, transcoders, less than two
      widths, a ladder that does not grow, or a name that is not there.
  """
  sample = activity.Sample.of(store, site, rows)
  sample.require_saes(saes)
  _require_autoencoders(saes)
  ladders = _ladders(saes, ladders)
  _require_names("delta_loss", delta_loss or {}, saes)
  if cofiring_rows < 1:
    raise ValueError(f"cofiring_rows {cofiring_rows}: expected at least 1")
  measured = _Measured(saes, sample, cofiring_rows)
  steps = {
    label: [
      Step(low, saes[low], high, saes[high], sample.groups)
      for low, high in zip(names, names[1:], strict=False)
    ]
    for label, names in ladders.items()
  }
  every = [step for ladder in steps.values() for step in ladder]
  for each in sample.blocks("widths", block, progress):
    entries, errors = measured.add(each)
    for step in every:
      step.add(entries[step.wide], errors[step.narrow], each.group)
  measured.finish()
  result = {
    "study": STUDY,
    "format": 1,
    "site": site,
    "tokens": {
      "counted": sample.rows,
      "sequences": measured.frequencies[next(iter(saes))].windows,
    },
    "bins": frequency.EDGES.round(3).tolist(),
    "saes": _saes(saes, measured, delta_loss or {}),
    "ladders": [
      {
        "label": label,
        "saes": list(names),
        "steps": [
          step.result(measured.activity, measured.frequencies)
          for step in steps[label]
        ],
        "law": _law([measured.fidelity[n] for n in names], saes, names),
        "mode_changes": _mode_changes(names, measured.frequencies),
      }
      for label, names in ladders.items()
    ],
    "equal_l0": _at_equal_l0(saes, measured.fidelity),
  }
  if arrays is not None:
    _write(arrays, measured.frequencies, every)
    result["arrays"] = pathlib.Path(arrays).name
  return result


class _Measured:
  """What is measured of each SAE alone."""

  def __init__(self, saes, sample, cofiring_rows):
    self._saes = {
      name: activity.entries.on_device(sae) for name, sae in saes.items()
    }
    self._w_dec = {n: np.asarray(s.params.w_dec) for n, s in saes.items()}
    self._b_dec = {n: np.asarray(s.params.b_dec) for n, s in saes.items()}
    self._firing = {
      name: activity.Firing(sae.width, sample) for name, sae in saes.items()
    }
    self.activity = {
      name: Activity(sae.width, cofiring_rows) for name, sae in saes.items()
    }
    mean, _ = sample.store.statistics(sample.site)
    self._mean = np.asarray(mean, np.float64)
    self._variance = np.zeros(sample.windows)
    self._squares = {name: np.zeros(sample.windows) for name in saes}
    self._linear = dark_matter.LinearError(len(self._mean), list(saes), sample)

  def add(self, block):
    """Adds a block; returns every SAE's entries and errors."""
    found, errors = {}, {}
    x = np.asarray(block.x, np.float32)
    self._by_window(self._variance, block, x - self._mean)
    for name, sae in self._saes.items():
      entries = activity.active(sae, x)
      code = entries.by_latent(len(x)).T.tocsr()
      error = x - (code @ self._w_dec[name] + self._b_dec[name][None])
      self._by_window(self._squares[name], block, error)
      self._firing[name].add(entries, block)
      self.activity[name].add(entries, len(x))
      found[name], errors[name] = entries, error
    self._linear.add(block, errors)
    return found, errors

  @staticmethod
  def _by_window(totals, block, vectors) -> None:
    first = block.windows[0]
    squares = np.square(vectors, dtype=np.float64).sum(axis=1)
    sums = np.bincount(block.windows - first, squares)
    totals[first : first + len(sums)] += sums

  def finish(self) -> None:
    """Turns sums into results."""
    self.frequencies = {n: each.finish() for n, each in self._firing.items()}
    self.fidelity = {
      name: fidelity_.Fidelity(
        self._squares[name],
        self._variance,
        each.window_active,
        each.window_rows,
      )
      for name, each in self.frequencies.items()
    }
    self.linear = self._linear.finish()


def _saes(saes, measured, delta_loss) -> list[dict[str, Any]]:
  found = []
  for name, sae in saes.items():
    row = frequency.describe_sae(name, sae)
    row |= frequency.describe(measured.frequencies[name])
    row["fvu"] = measured.fidelity[name].fvu().to_dict()
    if name in delta_loss:
      loss = delta_loss[name]
      row["delta_loss"] = (
        loss.to_dict() if isinstance(loss, Estimate) else dict(loss)
      )
    linear = measured.linear and measured.linear[name]
    row["linear_error"] = linear and {
      key: value and value.to_dict() for key, value in linear.items()
    }
    found.append(row)
  return found


def _law(found, saes, names) -> dict[str, Any]:
  return dark_matter.fit(
    [saes[name].width for name in names],
    [each.fvu().mean for each in found],
    fidelity_.covariance(found),
  )


def _mode_changes(names, frequencies) -> list[dict[str, Any]]:
  """How the commonest frequency moves at each step, paired by the draws."""
  found = []
  for low, high in zip(names, names[1:], strict=False):
    narrow, wide = frequencies[low], frequencies[high]
    change = activity.resampling.estimate(
      lambda w, n=narrow, m=wide: (
        frequency.mode(m.weighted(w)) - frequency.mode(n.weighted(w))
      ),
      len(narrow.group_rows),
      narrow.windows,
    )
    finite = np.isfinite(change.mean)
    found.append(
      {
        "narrow": low,
        "wide": high,
        "decades": change.to_dict() if finite else None,
      }
    )
  return found


def _at_equal_l0(saes, fidelity) -> list[dict[str, Any]]:
  """SAEs of two neighbouring widths, at each L0 of one that lies between two of
  the other's."""
  of_width: dict[int, list] = {}
  for name, sae in sorted(saes.items(), key=lambda item: item[1].width):
    of_width.setdefault(sae.width, []).append(fidelity[name])
  found = []
  for narrow, wide in itertools.pairwise(of_width):
    for own, other, sign in ((narrow, wide, 1), (wide, narrow, -1)):
      for one in of_width[own]:
        change = fidelity_.at_equal_l0(one, of_width[other])
        if change is not None:
          found.append(
            {
              "narrow": narrow,
              "wide": wide,
              "l0": one.l0().mean,
              "log_fvu": dataclasses.replace(
                change, mean=sign * change.mean
              ).to_dict(),
            }
          )
  return found


def _ladders(saes, ladders) -> dict[str, list[str]]:
  """Names of growing width, by label."""
  if ladders is None:
    ladders = {}
    for name, sae in saes.items():
      recipe = sae.config.details().get("recipe", {})
      coefficient = recipe.get("sparsity_coefficient")
      label = "all" if coefficient is None else f"λ = {coefficient:g}"
      ladders.setdefault(label, []).append(name)
    for names in ladders.values():
      names.sort(key=lambda name: saes[name].width)
    ladders = {label: n for label, n in ladders.items() if len(n) > 1}
    if not ladders:
      raise ValueError(
        f"{len(saes)} SAEs make no ladder: expected at least two widths of one"
        " sparsity coefficient, or `ladders`"
      )
  for label, names in ladders.items():
    _require_names(f"ladder {label!r}", names, saes)
    widths = [saes[name].width for name in names]
    if len(widths) < 2 or any(
      a >= b for a, b in zip(widths, widths[1:], strict=False)
    ):
      raise ValueError(
        f"ladder {label!r} has widths {widths}: expected at least two,"
        " growing; name the SAEs of each ladder in `ladders`"
      )
  return {label: list(names) for label, names in ladders.items()}


def _require_names(what, names, saes) -> None:
  for name in names:
    if name not in saes:
      raise ValueError(
        f"{what} names {name!r}, which is none of the SAEs: {', '.join(saes)}"
      )


def _require_autoencoders(saes) -> None:
  for name, sae in saes.items():
    if sae.config.target_site or sae.params.w_skip is not None:
      raise ValueError(
        f"{name!r} is a transcoder to {sae.config.target_site}: the width"
        " study compares SAEs, which reconstruct what they read"
      )


def _write(path, frequencies, steps) -> None:
  arrays = {}
  for name, each in frequencies.items():
    arrays[f"{name}|frequency"] = each.frequency.astype(np.float32)
    arrays[f"{name}|frequency_stderr"] = each.stderr.astype(np.float32)
  for step in steps:
    prefix = f"{step.narrow}|{step.wide}|"
    arrays |= {prefix + key: value for key, value in step.arrays.items()}
  with artifacts.atomic_write(path) as file:
    np.savez(file, **arrays)

"""Whether the SAEs of a release have the L0 and FVU that their cards say.

Losses are not measured again: what cards say of them is only compared with the
README, and stands behind the hashes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from gemmascope_jax import finetune, gemma
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.text import packaged_texts
from gemmascope_jax.experiment import bench
from gemmascope_jax.releases import verify as checks
from gemmascope_jax.releases.verify import Line, Release
from gemmascope_jax.studies import agreement, reconstruction
from gemmascope_jax.studies.reconstruction import Reading
from gemmascope_jax.studies.subjects import Subject, subject

# Where the release's own texts can't be had.
_TEXTS = ("wikipedia_en", "sotu", "dialogue")
_READING = [field.name for field in dataclasses.fields(Reading)]


def verify(
  path: str | os.PathLike,
  *,
  lm: str = "",
  delta: str = "",
  texts: Sequence[str] = (),
  packages: str = "",
  sequences: int = 0,
  progress: bool = True,
) -> list[Line]:
  """Compares every hash, loads every SAE, and measures L0 and FVU again.

  Args:
    path: of the release.
    lm: the language model's source; "": as the release says.
    delta: the folder of its fine-tune, of a release of one.
    texts: to measure on; none: the release's own, or packaged ones.
    packages: where packaged texts are; "": the default.
    sequences: so many only; 0: as many as the release's.
    progress: show a progress bar.

  Returns:
    What was found; the release is good if all of it is `ok`.

  Raises:
    FileNotFoundError: no release, no texts.
    ValueError: no release, or a model that can't be loaded.
  """
  release = checks.read(path)
  lines = list(release.lines)
  if not release.cards:
    return [*lines, Line(False, "release", "no SAE could be loaded")]
  said = release.index["model"]
  loaded = _model(said, lm, delta)
  about = checks.check_model(release, loaded)
  lines += about
  if not all(line.ok for line in about):
    return [*lines, Line(False, "release", "L0 and FVU were not measured")]
  card = next(iter(release.cards.values()))
  tokens, text = _tokens(card, loaded, texts, packages, sequences)
  lines.append(text)
  lines += _measured(release, loaded, tokens, said["dtype"], card, progress)
  return lines


def _model(said: dict[str, Any], source: str, delta: str):
  """The language model, computing as it did."""
  lm = gemma.load(source or said["source"], dtype=jnp.dtype(said["dtype"]))
  if said["delta"] and not delta:
    raise ValueError(
      f"the release is of a fine-tune, {said['label']}: give its folder, as"
      f" --delta=runs/{said['delta']}"
    )
  return finetune.apply(lm, delta) if delta else lm


def _tokens(card, lm, texts, packages, sequences) -> tuple[np.ndarray, Line]:
  """Held-out sequences, made as those of the card were, of what text there is."""
  about = card["evaluation"]["tokens"]
  own = list(about["sources"])
  names, why = list(texts) or own, ""
  config = ml_collections.ConfigDict(
    {
      "data": {**about["text"], "sources": tuple(names), "packages": packages},
      "evaluate": {
        "sequences": sequences or about["sequences"],
        "stride": about["stride"],
      },
    }
  )
  try:
    tokens = bench.held_out(config, lm, None)
  except (FileNotFoundError, ConnectionError) as error:
    if texts or set(own) <= set(packaged_texts.SOURCES):
      raise
    why = f" ({', '.join(own)} can't be read: {error})"
    names = list(_TEXTS)
    config.data.sources = _TEXTS
    tokens = bench.held_out(config, lm, None)
  said = f"{len(tokens)} sequences of {', '.join(names)}{why}"
  return tokens, Line(True, "text", said)


def _measured(release: Release, lm, tokens, dtype, card, progress):
  """A line for each SAE."""
  subjects, before, means = [], {}, {}
  for name, sae in release.saes.items():
    about = release.cards[name]["sae"]
    config = dataclasses.replace(
      sae.config, site=about["site"], target_site=about["target_site"]
    )
    one: Subject = subject(sae.replace(config=config), name)
    arrays = release.measured[name]
    before[name] = Reading(**{key: arrays[key] for key in _READING})
    means.setdefault(one.site, before[name].mean)
    subjects.append(one)
  first = release.measured[subjects[0].name]
  where = agreement.shared(first["sequences"], agreement.keys(tokens))
  policy = TokenPolicy.from_dict(card["token_policy"])
  now = reconstruction.measure(
    lm,
    subjects,
    tokens,
    policy,
    means=None if where is None else means,
    batch=card["evaluation"]["tokens"]["batch"],
    progress=progress,
  )
  for one in subjects:
    found = agreement.compare(before[one.name], now[one.name], where, dtype)
    metrics = release.cards[one.name]["evaluation"]["metrics"]
    then = before[one.name]
    given = {"L0": then.l0(), "FVU": then.fvu(), "silent": then.silent_share()}
    wrong = [
      name
      for name, estimate in given.items()
      if not _same(metrics[name.lower()], estimate.to_dict())
    ]
    said = "; ".join(map(str, found))
    if wrong:
      said = (
        f"its card's {' and '.join(wrong)} are not those of its sequences:"
        f" {said}"
      )
    ok = not wrong and all(each.holds for each in found)
    yield Line(ok, one.name, _verdict(ok, where is not None) + said)


def _same(said: dict[str, Any], given: dict[str, Any]) -> bool:
  """Whether a card's number is the one that its sequences give."""
  small = 1e-9 * abs(given["mean"])  # a TopK's L0 has an error of about 0
  for key, value in given.items():
    found = said.get(key)
    if value is None or not isinstance(found, (int, float)):
      if found is not value:
        return False
    elif not np.isclose(found, value, rtol=1e-9, atol=small):
      return False
  return True


def _verdict(ok: bool, paired: bool) -> str:
  if ok:
    return ""
  if paired:
    return "no longer does what its card says; "
  return (
    "does not do what its card says, on text that is not the card's (give that"
    " with --text); "
  )

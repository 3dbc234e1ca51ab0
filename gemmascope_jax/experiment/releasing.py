"""A run's finished SAEs -> a release."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gemmascope_jax import artifacts, releases
from gemmascope_jax.data import lock
from gemmascope_jax.data.text import texts
from gemmascope_jax.experiment import (
  release_losses,
  release_sources,
  settings,
)
from gemmascope_jax.experiment.bench import Bench
from gemmascope_jax.experiment.settings import Config
from gemmascope_jax.gemma import sites
from gemmascope_jax.gemma.weights import hub
from gemmascope_jax.releases import card as cards
from gemmascope_jax.releases import folder, readme
from gemmascope_jax.sae.sae import weights_hash
from gemmascope_jax.studies import agreement, reconstruction
from gemmascope_jax.studies.estimate import Estimate

_TEXT = ("window", "packed", "held_out", "piece_characters", "chat", "rollouts")
_TRAINING = ("seed", "lm", "data", "harvest", "train", "recipe")


def release(
  config: Config,
  out: str | os.PathLike,
  *,
  wanted: Sequence[str] = (),
  format: str = "gemma_scope",
  licence: str = "",
) -> dict[str, Any]:
  """Writes a release of the finished SAEs of a run; see `releases.folder`.

  Losses are those of the run's results where these are of the same weights,
  model, tokens and token policy; else they are measured. The same again writes
  the same bytes; what was cut short goes on.

  Args:
    config: of the run, or of several.
    out: the release's folder: a new one, or this release's.
    wanted: see `release_sources.choose`.
    format: of the weights, one of `releases.FORMATS`.
    licence: of the weights, one of `releases.card.LICENCES`; "": none stated.

  Returns:
    {"index", "cards" by folder, "left_out", "reused": how many SAEs' losses
    came from results}.

  Raises:
    ValueError: an unknown licence or format, an SAE that it cannot hold, a
      folder that holds something else or a release in another format or under
      another licence, or what `release_sources.choose` raises.
    FileNotFoundError: see there.
    LockedError: another process is writing this release.
  """
  cards.check_licence(licence)
  if format not in releases.FORMATS:
    raise ValueError(
      f"--format={format}: expected one of {', '.join(releases.FORMATS)}"
    )
  root = pathlib.Path(out)
  terms = {"weights_format": format, "licence": licence or None}
  folder.check_target(root, about=terms)  # before anything heavy
  chosen = release_sources.choose(config, wanted, format)
  bench, subjects = chosen.bench, chosen.subjects
  hashes = {one.name: weights_hash(one.sae) for one in subjects}
  folder.check_target(root, hashes.values(), terms)
  readings = reconstruction.measure(
    bench.lm,
    subjects,
    bench.tokens,
    bench.policy,
    batch=bench.config.evaluate.batch,
    folder=bench.folder,
    progress=bench.config.progress,
  )
  metrics, reused = release_losses.metrics(config, bench, hashes, readings)
  named = []
  for one in subjects:
    l0 = readings[one.name].l0().mean
    about = one.sae.config
    named.append(
      (about.site or one.reads, about.target_site, one.sae.width, l0)
    )
  places = folder.places(named)
  with lock.write_lock(root, folder.LOCK):
    folder.check_target(root, hashes.values(), terms)
    folder.begin(root, places, terms)
    model, training = _model(bench), _training(bench)
    tokens = _tokens(bench, chosen.checked)
    found = {}
    order = sorted(range(len(named)), key=lambda i: _order(*named[i]))
    for place, one in ((places[i], subjects[i]) for i in order):
      measured, code = metrics[one.name]
      made = cards.make(
        one.sae,
        name=one.name,
        model=model,
        training=training,
        evaluation={"metrics": measured, "tokens": tokens, "code": code},
        licence=licence,
      )
      where = root / place
      sequences = vars(readings[one.name]) | {
        "sequences": agreement.keys(bench.tokens)
      }
      found[place] = _write(where, one.sae, made, sequences, format)
    artifacts.write_text(root / folder.README, readme.render(found, format))
    index = folder.finish(
      root,
      {
        **terms,
        "model": model,
        "token_policy": bench.policy.to_dict(),
        "code": artifacts.code_version(),
        "saes": [
          {
            "folder": place,
            "name": each["name"],
            "weights_hash": each["sae"]["weights_hash"],
            "l0": each["evaluation"]["metrics"]["l0"]["mean"],
          }
          for place, each in found.items()
        ],
      },
    )
  return {
    "index": index,
    "cards": found,
    "left_out": chosen.left_out,
    "reused": reused,
  }


def _order(site: str, target: str | None, width: int, l0: float):
  """Kinds of sites as their folders, then layers, widths and L0s."""
  where = sites.parse(target or site)
  kind = sites.KINDS.index(sites.parse(site).kind)
  return bool(target), kind, where.layer, width, l0


def line(card: Mapping[str, Any]) -> str:
  """What a card says of its SAE, in a line for the terminal."""
  metrics = card["evaluation"]["metrics"]
  return "  ".join(
    f"{label} {Estimate(**metrics[key])}"
    for label, key in (
      ("L0", "l0"),
      ("FVU", "fvu"),
      ("delta loss", "delta_loss"),
    )
  )


def _write(where, sae, card, sequences, format) -> dict[str, Any]:
  """One SAE's folder, its card last; what is there whole stays."""
  about = {"format": format, "code": artifacts.code_version()}
  files = _whole(where, card["sae"]["weights_hash"], about)
  if files is None:
    # Of this release, and not whole: a save that was cut short.
    for path in where.glob("*"):
      path.unlink()
    releases.save(sae, where, format)
    files = {
      path.relative_to(where).as_posix(): folder.describe_file(path)
      for path in sorted(where.rglob("*"))
      if path.is_file() and path.name not in (folder.CARD, folder.SEQUENCES)
    }
  numbers = artifacts.canonical_json(sequences)
  artifacts.write_text(where / folder.SEQUENCES, f"{numbers}\n")
  card = card | {"files": files, "written": about}
  artifacts.write_json(where / folder.CARD, card)
  return card


def _whole(where, weights: str, about: Mapping[str, str]):
  """The files of the same weights, if they are there as its card says."""
  try:
    card = cards.read(where / folder.CARD)
    same = card["sae"]["weights_hash"] == weights and card["written"] == about
    files = card["files"]
    if same and all(
      folder.describe_file(where / name) == each for name, each in files.items()
    ):
      return files
  except (FileNotFoundError, ValueError, KeyError, TypeError):
    pass  # written again
  return None


def _model(bench: Bench) -> dict[str, Any]:
  """What the cards say of the language model."""
  lm, options = bench.lm, bench.config.lm
  delta = options.get("delta")
  named = hub.parse(options.source)
  base = named[0] if named else hub.ALIASES.get(lm.config.name)
  if pathlib.Path(options.source).exists():
    base = hub.ALIASES.get(lm.config.name)
  return {
    "label": lm.label,
    "weights_hash": lm.weights_hash,
    "tokenizer": lm.tokenizer.fingerprint,
    "source": cards.without_paths(options.source),
    "delta": cards.without_paths(str(delta)) if delta else None,
    "base": base,
    "dtype": options.dtype,
  }


def _training(bench: Bench) -> dict[str, Any]:
  """On what they were trained, and the settings of their run."""
  values = settings.resolved(bench.config)
  names = cards.without_paths(settings.sources(bench.config))
  return {
    "sources": names,
    "licences": {name: texts.licence(name) for name in names},
    "config": cards.without_paths({key: values[key] for key in _TRAINING}),
  }


def _tokens(bench: Bench, checked: bool) -> dict[str, Any]:
  """On what they were measured, so that it can be made again."""
  config = bench.config
  names = cards.without_paths(settings.sources(config))
  return bench.provenance()["tokens"] | {
    "sources": names,
    "licences": {name: texts.licence(name) for name in names},
    "text": {key: config.data[key] for key in _TEXT},
    "stride": config.evaluate.stride,
    "batch": config.evaluate.batch,
    "splice_special": config.evaluate.splice_special,
    "checked_against_training": checked,
  }

"""An SAE -> pages about its latents, from one config."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gemmascope_jax import artifacts, gemma
from gemmascope_jax.dashboards import export, live, neighbours, site
from gemmascope_jax.data.text import texts
from gemmascope_jax.experiment import activations, settings
from gemmascope_jax.experiment import bench as benches
from gemmascope_jax.experiment.bench import Bench
from gemmascope_jax.experiment.settings import Config
from gemmascope_jax.gemma import sites
from gemmascope_jax.releases import catalogue
from gemmascope_jax.sae.sae import weights_hash
from gemmascope_jax.studies import latents as latents_study
from gemmascope_jax.studies import side_by_side, subjects
from gemmascope_jax.studies.subjects import Subject
from gemmascope_jax.studies.width import matching

# Rows on which latents are looked at in pairs: four bytes an active entry.
_PAIR_ROWS = 131_072
_LOGIT_BINS = 50


def build(
  config: Config,
  given: str,
  out: str | os.PathLike,
  *,
  latents: int | Sequence[int] | None = 500,
  contexts: int = 12,
  context_tokens: int = 32,
  rows: int | None = None,
  explanations: str | os.PathLike | None = None,
  viewer: str | None = None,
) -> pathlib.Path:
  """Makes the pages.

  Activations are those of the config's store; if there is none, they are
  harvested first.

  Args:
    config: the settings: model, texts, store, held-out sequences.
    given: the SAE, "PATH" or "SITE=PATH".
    out: the folder.
    latents: how many, spread evenly over the ranks of firing frequency; which
      ones; or None: all that fire.
    contexts: top contexts of each.
    context_tokens: tokens of a context.
    rows: activations to look at; None: all of the store.
    explanations: result of the study `interpretability`, which has to know this
      SAE; None: no explanations.
    viewer: see `site.write`; None: the public page of a released SAE, if it has
      one (`catalogue.viewer`).

  Returns:
    The page to open.

  Raises:
    ValueError: an SAE that does not belong to the model, a latent that it does
      not have, more rows than the store has, explanations of other SAEs; and
      what `site.write` raises.
    FileNotFoundError: no explanations there.
    DeadSAEError: no latent fires.
  """
  site.check_folder(out)  # before anything heavy
  site.check_viewer(viewer)
  if explanations is not None and not pathlib.Path(explanations).is_file():
    raise FileNotFoundError(
      f"no explanations at {explanations}: expected the result of the study"
      " interpretability, as RUN/results/studies/interpretability.json"
    )
  bench, one = _bench(config, given, rows)
  said = None if explanations is None else _explanations(explanations, one.sae)
  store = bench.rows_store
  found = latents_study.gather(
    bench.lm,
    one.sae,
    store,
    contexts=contexts,
    rows=rows,
    progress=config.progress,
  )
  counts = found.frequencies.counts
  chosen = _choose(counts, latents, contexts, one)
  if said is not None:
    said = {number: each for number, each in said.items() if number in chosen}
  fires = matching.firing(
    one.sae,
    store,
    min(found.frequencies.rows, _PAIR_ROWS),
    one.name,
    config.progress,
  )
  direction = neighbours.by_direction(
    np.asarray(one.sae.params.w_dec), chosen, counts > 0
  )
  firing = neighbours.by_firing(fires, chosen)
  details = latents_study.details(
    bench.lm, one.sae, store, found, chosen, context_tokens=context_tokens
  )
  return site.write(
    out,
    _about(config, bench, one, found, len(chosen), len(fires.indptr) - 1),
    _with_neighbours(bench.lm, found, details, direction, firing),
    explanations=said,
    viewer=viewer or catalogue.viewer(one.sae.config),
  )


def write_export(
  config: Config,
  given: str,
  out: str | os.PathLike,
  kind: str,
  *,
  latents: int | Sequence[int] | None = None,
  contexts: int = 12,
  context_tokens: int = 32,
  rows: int | None = None,
  model_id: str = "",
  sae_set: str = "",
) -> list[pathlib.Path]:
  """What another viewer reads, instead of pages.

  Args:
    config: the settings.
    given: the SAE.
    out: the folder.
    kind: of `export.FORMATS`.
    latents: see `build`; "gemma_scope_2" always has all.
    contexts: top contexts of each.
    context_tokens: tokens of a context.
    rows: activations to look at; None: all of the store.
    model_id: for "neuronpedia", its name of the model.
    sae_set: its name of the set.

  Returns:
    The files.
  """
  if kind == "neuronpedia" and not (model_id and sae_set):
    raise ValueError(
      f"model_id {model_id!r}, sae_set {sae_set!r}: expected Neuronpedia's"
      " names of the model and of the set, as gemma-2-2b and gemmascope-res-16k"
    )
  bench, one = _bench(config, given, rows)
  lm, store = bench.lm, bench.rows_store
  found = latents_study.gather(
    lm,
    one.sae,
    store,
    contexts=contexts,
    rows=rows,
    progress=config.progress,
  )
  if kind == "gemma_scope_2":
    every = np.arange(one.sae.width)
    effects = latents_study.logit_effects(lm, one.sae, every)
    arrays = export.examples(found, store) | export.extremes(effects)
    return [export.gemma_scope_2(out, arrays)]
  chosen = _choose(found.frequencies.counts, latents, contexts, one)
  return export.neuronpedia(
    out,
    latents_study.details(
      lm,
      one.sae,
      store,
      found,
      chosen,
      context_tokens=context_tokens,
      logit_bins=_LOGIT_BINS,
    ),
    np.asarray(one.sae.params.w_dec),
    model_id=model_id,
    layer=sites.parse(one.reads).layer,
    sae_set=sae_set,
    dataset=", ".join(settings.sources(config)),
    windows=store.tokens.shape,
  )


def reader(
  config: Config, given: str, folder: str | os.PathLike | None = None
) -> live.Reader:
  """Reads sentences for `live.serve`: the model up to the SAE's site.

  Args:
    config: the settings.
    given: the SAE, "PATH" or "SITE=PATH".
    folder: of pages that have to be of this SAE; None: of any.

  Raises:
    FileNotFoundError: no SAE, or no pages there.
    ValueError: an SAE of another model, or not the one that the pages show.
  """
  one = subjects.read(given)
  if folder is not None:
    live.check_weights(folder, weights_hash(one.sae))
  lm = settings.load_lm(config, (one.reads,))
  policy = settings.token_policy(config, lm.tokenizer)
  one.check(lm, policy)
  encode = jax.jit(one.sae.encode)

  def read(text: str) -> tuple[list[str], np.ndarray]:
    ids = [lm.tokenizer.bos_id, *lm.tokenizer.encode(text)]
    # Padded on the right, so that few lengths compile.
    padded = np.full((1, -len(ids) % 32 + len(ids)), policy.pad_id, np.int32)
    padded[0, : len(ids)] = ids
    out = gemma.forward(
      lm.config,
      lm.params,
      padded,
      taps=(one.reads,),
      num_layers=sites.parse(one.reads).layer + 1,
    )
    values = np.asarray(encode(out.acts[one.reads]))[0]
    values = np.where(policy.keep(padded)[0][:, None], values, 0)
    return lm.tokenizer.pieces(ids)[1:], values[1 : len(ids)]

  return read


def _bench(
  config: Config, given: str, rows: int | None
) -> tuple[Bench, Subject]:
  """The SAE with model, store and held-out text; harvests if need be."""
  try:
    there = activations.open_rows(config).rows
    if rows is not None and rows > there:
      raise ValueError(
        f"rows {rows:,}: the store holds {there:,} rows; ask for no more, leave"
        " it out for all, or harvest more (another --workdir without --run)"
      )
  except FileNotFoundError:
    reads = subjects.read(given).reads
    with config.unlocked():
      config.harvest.sites = (reads,)
      config.train.site = reads
    activations.harvest(config)
  bench = benches.make(config, [given])
  return bench, (*bench.every(), *bench.tuned)[0]


def _choose(counts, latents, contexts: int, one: Subject) -> np.ndarray:
  alive = np.flatnonzero(counts)
  if not len(alive):
    raise latents_study.DeadSAEError(
      f"no latent of {one.name} fires on these activations of {one.reads}: it"
      " is dead, or the data are not its own"
    )
  if latents is None:
    return alive
  if isinstance(latents, int):
    return latents_study.choose(counts, latents, contexts)
  chosen = np.unique(np.asarray(latents, np.int64))
  if not len(chosen) or chosen[0] < 0 or chosen[-1] >= one.sae.width:
    raise ValueError(
      f"latents {list(latents)}: expected numbers from 0 to"
      f" {one.sae.width - 1}, those of {one.name}"
    )
  return chosen


def _with_neighbours(
  lm, found, details, direction, firing
) -> Iterator[dict[str, Any]]:
  """Each with its nearest: [latent, score, its strongest words]."""

  @functools.cache
  def words(latent: int) -> list[str]:
    top = latents_study.top_tokens(lm.tokenizer, found.tokens, latent, 3)
    return [piece for piece, _ in top]

  named = lambda pairs: [[*pair, words(pair[0])] for pair in pairs]
  for place, latent in enumerate(details):
    yield latent | {
      "by_direction": named(direction.of(place)),
      "by_firing": named(firing.of(place)),
    }


def _explanations(path, sae) -> dict[int, dict[str, Any]]:
  """What a result of the study says of this SAE's latents."""
  result = artifacts.read_json(path)
  if result.get("study") != "interpretability":
    raise ValueError(
      f"{path} is a result of the study {result.get('study')!r}: expected one"
      " of interpretability"
    )
  own = weights_hash(sae)
  names = [name for name, each in result["hashes"].items() if each == own]
  rows = [row for row in result["saes"] if row["name"] in names]
  if not rows:
    raise ValueError(
      f"{path} explains latents of {', '.join(result['hashes'])}, none of which"
      " has this SAE's weights: run the study interpretability on this SAE"
    )
  found = {}
  for latent in rows[0]["latents"]:
    if latent.get("explanation"):
      score = latent.get("score") or {}
      found[latent["latent"]] = {
        "explanation": latent["explanation"],
        "score": score.get("mean"),
      }
  return found


_SAYS = (
  ("L0", "l0", "latents active on a token"),
  ("FVU", "fvu", "share of the variance that it misses"),
  ("delta loss", "delta_loss", "nats a token that the model loses with it"),
  ("loss with it", "loss_spliced", "nats a token"),
  ("KL divergence", "divergence", "nats a token, from the model's own words"),
)


def _about(
  config: Config, bench: Bench, one: Subject, found, shown: int, pairs: int
) -> dict[str, Any]:
  """The SAE's card."""
  record, spliced = bench.measured({one.site: [one]})[one.site]
  mine, zero = spliced[one.name], spliced[side_by_side.ZERO]
  fidelity = []
  for name, method, says in _SAYS:
    value = getattr(mine, method)(record)
    if value is not None:
      fidelity.append([name, value.to_dict(), says])
  recovered = mine.loss_recovered(record, zero).to_dict()
  fidelity.append(
    ["loss recovered", recovered, "1: nothing lost, 0: as bad as zeros"]
  )
  fidelity.append(
    ["the model's own loss", record.clean().to_dict(), "nats a token"]
  )
  row = one.describe()
  sources = settings.sources(config)
  licences = {name: texts.licence(name) for name in sources}
  frequencies = found.frequencies
  alive = int((frequencies.counts > 0).sum())
  where = one.site if one.site == one.reads else f"{one.reads} to {one.site}"
  l0 = mine.l0(record)
  facts = (
    f"{bench.lm.label}, {where}, {row['family']}, {one.sae.width:,} latents"
    + (f", L0 {l0.mean:.1f}" if l0 is not None else "")
    + f", FVU {mine.fvu(record).mean:.3g}"
    + f". {shown:,} latents on {frequencies.rows:,} tokens."
  )
  return {
    "name": f"{one.name.rsplit('/', 1)[-1]} at {where}",
    "facts": facts,
    "about": [
      ["model", bench.lm.label],
      ["site", where],
      ["family", row["family"]],
      ["latents", f"{one.sae.width:,}"],
      ["k", _text(row["k"])],
      ["sparsity coefficient", _text(row["sparsity_coefficient"])],
      ["trained on", _count(row["train_tokens"], "activations")],
      ["never read or spliced", f"tokens {list(bench.policy.excluded_ids)}"],
      ["weights", weights_hash(one.sae)],
    ],
    "fidelity": fidelity,
    "measured_on": (
      f"Means and standard errors over {len(bench.tokens):,} held-out sequences"
      f" of {bench.tokens.shape[1]:,} tokens, of other documents than those"
      " below."
    ),
    "made_of": [
      ["texts", "; ".join(f"{name} ({licences[name]})" for name in sources)],
      ["tokens looked at", f"{frequencies.rows:,}"],
      ["latents that fire there", f"{alive:,} of {one.sae.width:,}"],
      ["latents shown", f"{shown:,}"],
      ["tokens for firing together", f"{pairs:,}"],
      ["code", artifacts.code_version()],
    ],
  }


def _text(value: Any) -> str | None:
  return None if value is None else f"{value:g}"


def _count(value: Any, what: str) -> str | None:
  return None if value is None else f"{value:,} {what}"


def parse_latents(text: str) -> int | list[int] | None:
  """ "500" -> 500; "all" -> None; "3,17" or "3," -> those.

  Raises:
    ValueError: it is none of these.
  """
  if text == "all":
    return None
  try:
    numbers = [int(part) for part in text.split(",") if part.strip()]
  except ValueError:
    numbers = []
  if not numbers or min(numbers) < 0 or text == "0":
    raise ValueError(
      f"latents {text!r}: expected how many, as 500; which, as 3,17,200; or all"
    )
  return numbers if "," in text else numbers[0]

"""Random latents of an SAE, and the contexts to judge them on, from a store.

Three passes in bounded memory: which latents fire in how many contexts; how
strongly the drawn ones fire in each; their activations in the chosen ones.

Letters: B contexts in a block, C contexts, T tokens in a context, M latents,
L drawn latents.
"""

from __future__ import annotations

import os
import pathlib
import zipfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from gemmascope_jax import artifacts
from gemmascope_jax.sae.sae import SAE, SAEConfig
from gemmascope_jax.studies.interpretability.chunks import Chunks
from gemmascope_jax.studies.interpretability.contexts import (
  Contexts,
  Design,
  Gathered,
  Sample,
)

# Of latents' activations at once, and of their peaks in all contexts.
_BLOCK_BYTES = 128 << 20
_PEAK_BYTES = 1 << 30


def gather(
  sae: SAE,
  store,
  design: Design | None = None,
  *,
  rows: int | None = None,
  seed: int = 0,
  folder: str | os.PathLike | None = None,
  progress: bool = True,
) -> Gathered:
  """Draws latents and collects their contexts.

  Args:
    sae: a finished SAE of a site that `store` holds.
    store: activations with their tokens.
    design: see `Design`.
    rows: rows of the store to look at; None: all.
    seed: of the latents, the halves of the text and the contexts.
    folder: where the result is kept, so that it is found there the next time;
      None: nowhere.
    progress: show progress bars.

  Returns:
    The samples; fewer than `design.latents` if fewer latents are eligible.

  Raises:
    ValueError: the SAE's site is not in the store, or no context is complete.
  """
  design = design or Design()
  path = None
  if folder is not None:
    key = artifacts.fingerprint(
      [
        artifacts.sha256_arrays(jax.tree.leaves(sae.params)),
        [sae.config.k, sae.config.site, store.fingerprint],
        [design, rows, seed, artifacts.code_version()],
      ]
    )
    path = pathlib.Path(folder) / f"contexts_{key}.npz"
    found = _load(path, design)
    if found is not None:
      return found
  # Without its provenance, which is static, all of one shape compile once.
  sae = jax.tree.map(
    jnp.asarray,
    sae.replace(config=SAEConfig(k=sae.config.k, site=sae.config.site)),
  )
  chunks = Chunks(store, sae.config.site, design.length, rows)
  random = np.random.default_rng(seed)
  half = _halves(chunks, random)
  fired, contexts = _count(sae, chunks, half, progress)
  needed = np.array([design.explain, design.top + design.quantile])
  eligible = np.flatnonzero((contexts >= needed[:, None]).all(axis=0))
  drawn = random.permutation(eligible)[: design.latents]
  picks = [
    _pick(peaks, half, design, np.random.default_rng([seed, int(latent)]))
    for latent, peaks in _peaks(sae, chunks, drawn, progress)
  ]
  values = _values_at(sae, chunks, drawn, picks, progress)
  samples = []
  for latent, pick, (activations, keep) in zip(
    drawn, picks, values, strict=True
  ):
    found = Contexts(chunks.tokens(pick), activations, keep)
    frequency = float(fired[latent] / chunks.rows)
    samples.append(_sample(int(latent), frequency, found, design))
  gathered = Gathered(
    samples=samples,
    width=sae.width,
    alive=int((fired > 0).sum()),
    eligible=len(eligible),
    tokens=chunks.rows,
  )
  if path is not None:
    _save(path, gathered)
  return gathered


def _halves(chunks: Chunks, random: np.random.Generator) -> np.ndarray:
  """int [C]: 0 for contexts to explain from, 1 for held-out ones; by window."""
  windows, place = np.unique(chunks.windows(), return_inverse=True)
  side = np.zeros(len(windows), int)
  side[random.permutation(len(windows))[: len(windows) // 2]] = 1
  return side[place]


def _blocks(
  chunks: Chunks, which: np.ndarray, latents: int, what: str, progress: bool
) -> Iterator[tuple[np.ndarray, jax.Array, jax.Array]]:
  """(their places in `which`, x [B, T, D], keep [B, T]); the last is padded."""
  size = max(1, _BLOCK_BYTES // (4 * chunks.length * latents))
  size = min(size, len(which))
  bar = tqdm.tqdm(
    total=len(which),
    desc=what,
    unit="context",
    unit_scale=True,
    disable=not progress or jax.process_index() > 0,
  )
  for start in range(0, len(which), size):
    places = np.arange(start, min(start + size, len(which)))
    x, keep = chunks.read(which[places])
    room = ((0, size - len(places)), (0, 0))
    yield (
      places,
      jnp.asarray(np.pad(x, (*room, (0, 0)))),
      jnp.asarray(np.pad(keep, room)),
    )
    bar.update(len(places))
  bar.close()


def _count(sae, chunks, half, progress) -> tuple[np.ndarray, np.ndarray]:
  """Tokens [M] and, of each half, contexts [2, M] in which a latent fires."""
  fired = np.zeros(sae.width, np.int64)
  contexts = np.zeros((2, sae.width), np.int64)
  everything = np.arange(len(chunks))
  blocks = _blocks(chunks, everything, sae.width, "firing latents", progress)
  for places, x, keep in blocks:
    side = np.zeros(len(x), np.int32)
    side[: len(places)] = half[places]
    tokens, by_half = _fired(sae, x, keep, jnp.asarray(side))
    fired += np.asarray(tokens, np.int64)
    contexts += np.asarray(by_half, np.int64)
  return fired, contexts


def _peaks(sae, chunks, drawn, progress) -> Iterator[tuple[int, np.ndarray]]:
  """Each drawn latent and its strongest activation in every context, [C]."""
  group = max(1, _PEAK_BYTES // (4 * len(chunks)))
  everything = np.arange(len(chunks))
  for first in range(0, len(drawn), group):
    some = drawn[first : first + group]
    peaks = np.zeros((len(some), len(chunks)), np.float32)
    width = sae.width if sae.config.k is not None else len(some)
    blocks = _blocks(chunks, everything, width, "strongest contexts", progress)
    for places, x, keep in blocks:
      found = _values(sae, x, keep, jnp.asarray(some)).max(axis=1)
      peaks[:, places] = np.asarray(found)[: len(places)].T
    yield from zip(some, peaks, strict=True)


def _values_at(
  sae, chunks, drawn, picks, progress
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Each latent's activations and kept positions in its contexts, [n, T]."""
  out = [
    (
      np.zeros((len(pick), chunks.length), np.float32),
      np.zeros((len(pick), chunks.length), bool),
    )
    for pick in picks
  ]
  if not picks:
    return out
  wanted = np.unique(np.concatenate(picks))
  users: dict[int, list[tuple[int, int]]] = {}
  for latent, pick in enumerate(picks):
    for place, chunk in enumerate(pick):
      users.setdefault(int(chunk), []).append((latent, place))
  width = sae.width if sae.config.k is not None else len(drawn)
  blocks = _blocks(chunks, wanted, width, "activations", progress)
  for places, x, keep in blocks:
    values = np.asarray(_values(sae, x, keep, jnp.asarray(drawn)))
    kept = np.asarray(keep)
    for i, place in enumerate(places):
      for latent, where in users[int(wanted[place])]:
        out[latent][0][where] = values[i, :, latent]
        out[latent][1][where] = kept[i]
  return out


@jax.jit
def _fired(sae, x, keep, half):
  active = (sae.encode(x) > 0) & keep[:, :, None]
  anywhere = active.any(axis=1).astype(jnp.int32)
  by_half = jax.ops.segment_sum(anywhere, half, num_segments=2)
  return active.sum(axis=(0, 1)), by_half


@jax.jit
def _values(sae, x, keep, drawn):
  """Activations of the drawn latents only: [B, T, L]."""
  if sae.config.k is None:
    params = sae.params.replace(
      w_enc=sae.params.w_enc[:, drawn],
      b_enc=sae.params.b_enc[drawn],
      threshold=sae.params.threshold[drawn],
    )
    found = sae.replace(params=params).encode(x)
  else:  # which latents are among the k largest depends on all of them
    found = sae.encode(x)[..., drawn]
  return jnp.where(keep[:, :, None], found, 0)


def _pick(
  peaks: np.ndarray,
  half: np.ndarray,
  design: Design,
  random: np.random.Generator,
) -> np.ndarray:
  """Numbers of a latent's contexts: to explain, top, quantile, random."""
  shown = np.flatnonzero(half == 0)
  shown = shown[np.argsort(-peaks[shown], kind="stable")][: design.explain]
  rest = np.flatnonzero(half == 1)
  ranked = rest[np.argsort(-peaks[rest], kind="stable")]
  top, ranked = ranked[: design.top], ranked[design.top :]
  # At least so many, should rounding hide one that only just fires.
  active = ranked[: max((peaks[ranked] > 0).sum(), design.quantile)]
  quantile = [
    random.choice(part) for part in np.array_split(active, design.quantile)
  ]
  others = np.setdiff1d(rest, np.concatenate([top, quantile]))
  if len(others) < design.random:
    raise ValueError(
      f"{len(rest)} held-out contexts are too few for {design.top} top,"
      f" {design.quantile} quantile and {design.random} random ones: use more"
      " rows or fewer contexts"
    )
  drawn = random.choice(others, design.random, replace=False)
  return np.concatenate([shown, top, quantile, drawn]).astype(np.int64)


def _sample(latent, frequency, found: Contexts, design: Design) -> Sample:
  """Splits a latent's contexts into those to explain and those held out."""
  cut = design.explain

  def part(which: slice) -> Contexts:
    return Contexts(
      found.tokens[which], found.activations[which], found.keep[which]
    )

  return Sample(
    latent=latent,
    frequency=frequency,
    shown=part(slice(None, cut)),
    held_out=part(slice(cut, None)),
    kinds=design.kinds,
  )


def _save(path: pathlib.Path, gathered: Gathered) -> None:
  arrays: dict[str, np.ndarray] = {
    "latents": np.array([s.latent for s in gathered.samples], np.int64),
    "frequencies": np.array([s.frequency for s in gathered.samples]),
    "facts": np.array(
      [gathered.width, gathered.alive, gathered.eligible, gathered.tokens]
    ),
  }
  if gathered.samples:
    for name in ("tokens", "activations", "keep"):
      arrays[name] = np.stack(
        [
          np.concatenate([getattr(s.shown, name), getattr(s.held_out, name)])
          for s in gathered.samples
        ]
      )
  with artifacts.atomic_write(path) as file:
    np.savez(file, **arrays)


def _load(path: pathlib.Path, design: Design) -> Gathered | None:
  """What `_save` wrote; None if there is nothing whole to read."""
  if not (path.exists() and zipfile.is_zipfile(path)):
    return None
  try:
    with np.load(path, allow_pickle=False) as archive:
      read = {name: archive[name] for name in archive.files}
    samples = [
      _sample(
        int(latent),
        float(frequency),
        Contexts(read["tokens"][i], read["activations"][i], read["keep"][i]),
        design,
      )
      for i, (latent, frequency) in enumerate(
        zip(read["latents"], read["frequencies"], strict=True)
      )
    ]
    return Gathered(samples, *map(int, read["facts"]))
  except (zipfile.BadZipFile, EOFError, KeyError, ValueError, OSError):
    return None  # gathered again: it is a cache

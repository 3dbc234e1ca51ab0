"""Gemma Scope's `params.npz`: the five folded arrays, float32.

Keys and shapes as released: `W_enc` [D, M], `W_dec` [M, E], `b_enc` [M],
`b_dec` [E], `threshold` [M], with E = D but for transcoders; folders
`layer_{L}/width_{W}/average_l0_{N}/params.npz`, W = 16k, 65k, 1m ..., N the
*measured* mean number of active latents. A skip transcoder has besides
`affine_skip_connection` [D, E], as Gemma Scope 2 names it. A crosscoder, which
Gemma Scope has none of, has `W_enc.SITE`, `W_dec.SITE` and `b_dec.SITE` for each
of its sites, so that nothing takes it for an SAE.

Beside the arrays stands `sae.json` (see `identity`). A folder without it
(Google's) loads as well; then sites and model are unknown unless the path tells.
Files with lower-case keys load too, and with a `scaling_factor` that is 1.

An embedding SAE reads rows of the embedding matrix as they are stored; see
`scaled_embedding`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
from jax.sharding import Mesh

from gemmascope_jax import artifacts
from gemmascope_jax.releases import identity, names, npz, parts, stored
from gemmascope_jax.releases.stored import Stored
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig

ARRAYS = "params.npz"
CARD = identity.CARD
FORMAT = identity.FORMAT
_KEYS = {
  "w_enc": "W_enc",
  "w_dec": "W_dec",
  "b_enc": "b_enc",
  "b_dec": "b_dec",
  "threshold": "threshold",
  "w_skip": "affine_skip_connection",
}
_OPTIONAL = ("w_skip",)
_LOWER = {"w_enc": "W_enc", "w_dec": "W_dec"}
_SCALING = "scaling_factor"
_SITE_AXES = {"w_enc": 0, "w_dec": 1, "b_dec": 0}


def width_name(width: int) -> str:
  """2^14 -> "16k", 2^20 -> "1m", as in the released folders."""
  return f"{width // 10**6}m" if width >= 10**6 else f"{width // 1000}k"


def folder_name(layer: int, width: int, average_l0: float) -> str:
  """`layer_{L}/width_{W}/average_l0_{N}`, with the L0 rounded."""
  return (
    f"layer_{layer}/width_{width_name(width)}/average_l0_{round(average_l0)}"
  )


def save(sae: SAE, folder: str | os.PathLike) -> pathlib.Path:
  """Writes `params.npz` and `sae.json` into `folder`.

  The same SAE gives the same bytes. The card is written last, so a folder with
  a card is whole.

  Args:
    sae: folded, as `sae.fold` gives it.
    folder: made if needed.

  Returns:
    The folder.

  Raises:
    ValueError: a parameter that is not finite, or a threshold below zero.
  """
  return save_parts(parts.of(sae), sae.width, sae.config, folder)


def save_parts(
  blocks: Iterable[Params],
  width: int,
  config: SAEConfig,
  folder: str | os.PathLike,
) -> pathlib.Path:
  """`save` of an SAE that comes in parts; no more than one is held.

  Args:
    blocks: of consecutive latents, w_enc [D, n] and so on; b_dec and w_skip
      whole in each.
    width: of the parts together.
    config: the SAE's.
    folder: made if needed.

  Returns:
    The folder.

  Raises:
    ValueError: as `save`.
  """
  folder = pathlib.Path(folder)
  file = folder / ARRAYS
  pieces = (
    _by_site(block, config) for block in parts.checked(blocks, config, file)
  )
  first = next(pieces)
  members = [_member(field, *each, width) for field, each in _items(first)]
  with (
    artifacts.atomic_write(file) as out,
    npz.writing(out, members) as append,
  ):
    for _, (key, value) in _items(first):
      append(key, value)
    for piece in pieces:
      for field, (key, value) in _items(piece):
        if field in parts.AXES:
          append(key, value)
  identity.write(folder / CARD, [file], config)
  return folder


def _by_site(
  arrays: Mapping[str, np.ndarray], config: SAEConfig
) -> dict[str, dict[str, np.ndarray]]:
  """By field, arrays by key: one, or a crosscoder's sites' in order."""
  found = {}
  for field, key in _KEYS.items():
    if field not in arrays:
      continue
    found[field] = {key: arrays[field]}
    if config.parts and field in _SITE_AXES:
      before = (slice(None),) * _SITE_AXES[field]
      found[field] = {
        f"{key}.{site}": arrays[field][(*before, columns)]
        for site, columns in config.columns.items()
      }
  return found


def _items(piece: dict[str, dict[str, np.ndarray]]):
  """(field, (key, array)); whole arrays first, then those cut by site."""
  flat = [
    (field, (key, value))
    for field, arrays in piece.items()
    for key, value in arrays.items()
  ]
  return sorted(flat, key=lambda item: "." in item[1][0])


def _member(field: str, key: str, value: np.ndarray, width: int) -> npz.Member:
  """What the archive will hold of an array of which `value` is a part."""
  shape = list(value.shape)
  if field in parts.AXES:
    shape[parts.AXES[field]] = width
  return npz.Member(key, tuple(shape), last_axis_first=field == "w_enc")


def is_whole(folder: str | os.PathLike) -> bool:
  """Whether `save` finished there and its arrays are still what it wrote."""
  folder = pathlib.Path(folder)
  return identity.is_whole(folder / CARD, [folder / ARRAYS])


def load(path: str | os.PathLike, mesh: Mesh | None = None) -> SAE:
  """Reads `params.npz`, Google's or ours.

  Args:
    path: the file, or the folder that holds it.
    mesh: devices to load it onto, latents over the "model" axis; of the arrays,
      each process then reads only what its devices hold.

  Returns:
    The SAE, with numpy float32 arrays, or JAX's on the mesh.

  Raises:
    FileNotFoundError: no such file.
    ValueError: truncated, other keys, shapes that do not fit together, values
      that are not finite, or a card that belongs to another file.
  """
  path = pathlib.Path(path)
  file = path / ARRAYS if path.is_dir() else path
  if not file.exists():
    raise FileNotFoundError(f"no {ARRAYS} at {path}")
  arrays = npz.members(file) if mesh else npz.members(file, mapped=False)
  arrays = {_renamed(key): value for key, value in arrays.items()}
  _check_keys(arrays, file)
  config = identity.read(file.with_name(CARD), [file])
  known = config is not None
  config = config or _config_from_path(file)
  found = _joined(arrays, config, file)
  return stored.assemble(found, config, file, mesh, known)


def _renamed(key: str) -> str:
  """The released key: "w_enc.res.1" -> "W_enc.res.1"."""
  kind, dot, site = key.partition(".")
  return f"{_LOWER.get(kind, kind)}{dot}{site}"


def _check_keys(arrays: dict[str, np.ndarray], file: pathlib.Path) -> None:
  there = {key.partition(".")[0] for key in arrays}
  needed = {key for field, key in _KEYS.items() if field not in _OPTIONAL}
  if missing := needed - there:
    known = sorted(k for k in arrays if k.partition(".")[0] in _KEYS.values())
    raise ValueError(
      f"{file} lacks {', '.join(sorted(missing))}; of an SAE's arrays it holds"
      f" {', '.join(known) or 'none'}: not a Gemma Scope SAE"
    )
  scaling = arrays.pop(_SCALING, np.ones(()))
  if not (np.asarray(scaling) == 1).all():
    raise ValueError(
      f"{file}: {_SCALING} is not 1 everywhere, so latents are scaled after"
      " their threshold; expected a release, in which it is folded into W_dec"
    )


def _joined(
  arrays: Mapping[str, np.ndarray], config: SAEConfig, where: pathlib.Path
) -> dict[str, Stored]:
  """By field; a crosscoder's sites side by side."""
  sites = {key.partition(".")[2] for key in arrays} - {""}
  if sorted(sites) != sorted(config.columns):
    raise ValueError(
      f"{where} holds sites {', '.join(sorted(sites)) or 'none'}, but a"
      f" crosscoder of {', '.join(config.columns) or 'none'} was expected:"
      f" fetch the folder again, with its {CARD}"
    )
  found = {}
  for field, key in _KEYS.items():
    keys = [key]
    if sites and field in _SITE_AXES:
      keys = [f"{key}.{site}" for site in config.columns]
    if keys[0] in arrays:
      each = [stored.array(key, arrays[key]) for key in keys]
      found[field] = stored.joined(each, _SITE_AXES.get(field, 0))
  return found


def _config_from_path(file: pathlib.Path) -> SAEConfig:
  """What the names of Google's repositories and folders tell."""
  # Not the file's own links: the Hub's cache keeps files elsewhere.
  folder = file.parent.resolve()
  name = names.in_path((folder / file.name).as_posix())
  if name is None or name.scope != 1:
    return SAEConfig()
  return identity.foreign(
    "gemma_scope",
    {"released_as": str(name)},
    site=name.site,
    target_site=name.target_site,
    model=name.model,
  )


def scaled_embedding(sae: SAE) -> SAE:
  """An embedding SAE that reads what the model's first block reads.

  It was trained on rows e of the embedding matrix; the residual stream starts
  as s e with s = sqrt(D). For e_hat = f W_dec + b_dec, s e_hat is

    f = JumpReLU((s e) (W_enc / s) + b_enc),  f (s W_dec) + s b_dec

  so thresholds and b_enc stay, and b_dec is multiplied as W_dec is. (SAELens
  leaves b_dec as it is, so its reconstructions of the scaled embedding are off
  by (s - 1) b_dec, while its latents are the same.)

  Args:
    sae: at the site "embedding".

  Returns:
    The same latents; reads and writes the scaled embedding, a point that is no
    site of ours, so that its site is None.

  Raises:
    ValueError: not an embedding SAE.
  """
  if sae.config.site != names.EMBEDDING:
    raise ValueError(
      f"an SAE at {sae.config.site or 'an unnamed site'} is not one of the"
      f" embedding: expected the site {names.EMBEDDING!r}"
    )
  scale = np.sqrt(np.float64(sae.site_width))
  p = sae.params
  times = lambda value, by: (np.asarray(value, np.float64) * by).astype("f4")
  return SAE(
    params=p.replace(
      w_enc=times(p.w_enc, 1 / scale),
      w_dec=times(p.w_dec, scale),
      b_dec=times(p.b_dec, scale),
    ),
    config=dataclasses.replace(sae.config, site=None),
  )

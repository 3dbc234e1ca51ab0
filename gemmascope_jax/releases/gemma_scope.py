"""Gemma Scope's `params.npz`: the five folded arrays, float32.

Keys and shapes as released: `W_enc` [D, M], `W_dec` [M, E], `b_enc` [M],
`b_dec` [E], `threshold` [M], with E = D but for transcoders; folders
`layer_{L}/width_{W}/average_l0_{N}/params.npz`, W = 16k, 65k, 1m ..., N the
*measured* mean number of active latents. A skip transcoder has besides
`affine_skip_connection` [D, E], as Gemma Scope 2 names it. A crosscoder, which
Gemma Scope has none of, has `W_enc.SITE`, `W_dec.SITE` and `b_dec.SITE` for each
of its sites, so that nothing takes it for an SAE.

Beside the arrays stands `sae.json`, ours: sites, model, token policy,
provenance. A folder without it (Google's) loads as well; then sites and model
are unknown unless the path tells.
"""

from __future__ import annotations

import os
import pathlib
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from gemmascope_jax import artifacts, parallel
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.releases import npz
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig

ARRAYS = "params.npz"
CARD = "sae.json"
FORMAT = 2
_OLDER = 1  # of SAEs only
_KEYS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_SKIP = "affine_skip_connection"
_SITE_AXES = {"W_enc": 0, "W_dec": 1, "b_dec": 0}
_LATENT_AXES = {"W_enc": 1, "W_dec": 0, "b_enc": 0, "threshold": 0}


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
  return save_parts([sae.params], sae.width, sae.config, folder)


def save_parts(
  parts: Iterable[Params],
  width: int,
  config: SAEConfig,
  folder: str | os.PathLike,
) -> pathlib.Path:
  """`save` of an SAE that comes in parts; no more than one is held.

  Args:
    parts: of consecutive latents, w_enc [D, n] and so on; b_dec and w_skip
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
  pieces = (_arrays(part, config, folder / ARRAYS) for part in parts)
  first = next(pieces)
  members = [_member(key, value, width) for key, value in first.items()]
  with (
    artifacts.atomic_write(folder / ARRAYS) as file,
    npz.writing(file, members) as append,
  ):
    for key, value in first.items():
      append(key, value)
    for piece in pieces:
      for key, value in piece.items():
        if _kind(key) in _LATENT_AXES:
          append(key, value)
  policy = config.token_policy
  artifacts.write_json(
    folder / CARD,
    {
      "format": FORMAT,
      "family": config.family,
      "k": config.k,
      "site": config.site,
      "target_site": config.target_site,
      "parts": config.parts,
      "model": config.model,
      "token_policy": policy and policy.to_dict(),
      "provenance": config.details(),
      "sha256": artifacts.sha256_file(folder / ARRAYS),
      "code": artifacts.code_version(),
    },
  )
  return folder


def _arrays(params: Params, config: SAEConfig, where: pathlib.Path) -> dict:
  """A part's arrays by their keys."""
  arrays = {
    "W_enc": params.w_enc,
    "W_dec": params.w_dec,
    "b_enc": params.b_enc,
    "b_dec": params.b_dec,
    "threshold": params.threshold,
  }
  if params.w_skip is not None:
    arrays[_SKIP] = params.w_skip
  arrays = {k: np.asarray(v, np.float32) for k, v in arrays.items()}
  _check_shapes({k: v.shape for k, v in arrays.items()}, config, where)
  for key, value in arrays.items():
    _check_values(key, value, where)
  return _by_site(arrays, config)


def _member(key: str, value: np.ndarray, width: int) -> npz.Member:
  """What the archive will hold of an array of which `value` is a part."""
  shape = list(value.shape)
  if _kind(key) in _LATENT_AXES:
    shape[_LATENT_AXES[_kind(key)]] = width
  return npz.Member(key, tuple(shape), last_axis_first=_kind(key) == "W_enc")


def _kind(key: str) -> str:
  """Without a crosscoder's site."""
  return key.partition(".")[0]


def is_whole(folder: str | os.PathLike) -> bool:
  """Whether `save` finished there and its arrays are still what it wrote."""
  folder = pathlib.Path(folder)
  if not ((folder / CARD).exists() and (folder / ARRAYS).exists()):
    return False
  try:
    card = artifacts.read_json(folder / CARD)
  except ValueError:
    return False
  return card.get("sha256") == artifacts.sha256_file(folder / ARRAYS)


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
  arrays = _read(file, mapped=mesh is not None)
  config = _config(file)
  sites = _side_by_side(arrays, config, file)
  shapes = {key: _shape(key, parts) for key, parts in sites.items()}
  _check_shapes(shapes, config, file)

  def values(key: str, index=...) -> np.ndarray:
    parts = [np.asarray(part[index], np.float32) for part in sites[key]]
    whole = parts[0]
    if len(parts) > 1:
      whole = np.concatenate(parts, axis=_SITE_AXES[key])
    _check_values(key, whole, file)
    return whole

  keys = Params(
    w_enc="W_enc",
    b_enc="b_enc",
    w_dec="W_dec",
    b_dec="b_dec",
    threshold="threshold",
    w_skip=_SKIP if _SKIP in sites else None,
  )
  if mesh is None:
    return SAE(params=jax.tree.map(values, keys), config=config)
  like = jax.tree.map(
    lambda key: jax.ShapeDtypeStruct(shapes[key], np.float32), keys
  )
  shardings = parallel.shardings(like, mesh, parallel.FOLDED_RULES)
  params = jax.tree.map(
    lambda key, sharding: jax.make_array_from_callback(
      shapes[key], sharding, lambda index: values(key, index)
    ),
    keys,
    shardings,
  )
  return SAE(params=params, config=config)


def _read(file: pathlib.Path, mapped: bool) -> dict[str, np.ndarray]:
  """The arrays, or maps of them; nothing in the file is ever executed."""
  if not zipfile.is_zipfile(file):
    raise ValueError(
      f"{file} is truncated or not an npz archive: fetch or write it again"
    )
  try:
    if mapped:
      arrays = npz.members(file)
    else:
      with np.load(file, allow_pickle=False) as archive:
        arrays = {
          key: archive[key]
          for key in archive.files
          if _kind(key) in (*_KEYS, _SKIP)
        }
  except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
    raise ValueError(
      f"{file} is damaged ({error}): fetch or write it again"
    ) from error
  missing = set(_KEYS) - {_kind(key) for key in arrays}
  if missing:
    raise ValueError(
      f"{file} lacks {', '.join(sorted(missing))}; of an SAE's arrays it holds"
      f" {', '.join(sorted(arrays)) or 'none'}: not a Gemma Scope SAE"
    )
  return arrays


def _config(file: pathlib.Path) -> SAEConfig:
  card_file = file.with_name(CARD)
  if not card_file.exists():
    return _config_from_path(file)
  card = artifacts.read_json(card_file)
  if card.get("format") not in (_OLDER, FORMAT):
    raise ValueError(
      f"{card_file} has format {card.get('format')}, this version reads"
      f" {FORMAT}: update gemmascope_jax"
    )
  digest = artifacts.sha256_file(file)
  if card["sha256"] != digest:
    raise ValueError(
      f"{file} is not the file that {card_file} describes: sha256"
      f" {digest[:12]}..., expected {card['sha256'][:12]}...; fetch or write"
      " the folder again"
    )
  policy = card["token_policy"]
  return SAEConfig(
    family=card["family"],
    k=card.get("k"),
    site=card["site"],
    target_site=card.get("target_site"),
    parts=tuple((site, width) for site, width in card.get("parts", ())),
    model=card["model"],
    token_policy=policy and TokenPolicy.from_dict(policy),
    provenance=artifacts.canonical_json(card["provenance"]),
  )


def _config_from_path(file: pathlib.Path) -> SAEConfig:
  """What Google's repository and folder names tell."""
  text = file.resolve().as_posix()
  layer = re.search(r"/layer_(\d+)/", text)
  kinds = "res|mlp|att|transcoders"
  repo = re.search(rf"gemma-scope-(\d+b)-(pt|it)-({kinds})(?![a-z])", text)
  if not (layer and repo):
    return SAEConfig()
  size, tuning, kind = repo.groups()
  model = f"gemma-2-{size}" + ("-it" if tuning == "it" else "")
  if kind == "transcoders":
    return SAEConfig(
      site=f"mlp_in.{layer.group(1)}",
      target_site=f"mlp.{layer.group(1)}",
      model=model,
    )
  return SAEConfig(site=f"{kind}.{layer.group(1)}", model=model)


def _by_site(arrays: dict, config: SAEConfig) -> dict[str, np.ndarray]:
  """A crosscoder's arrays cut into its sites; others as they are."""
  found = dict(arrays)
  for key, axis in _SITE_AXES.items() if config.parts else ():
    whole = found.pop(key)
    for site, columns in config.columns.items():
      where = (slice(None),) * axis + (columns,)
      found[f"{key}.{site}"] = whole[where]
  return found


def _side_by_side(
  arrays: Mapping[str, np.ndarray], config: SAEConfig, where: pathlib.Path
) -> dict[str, list[np.ndarray]]:
  """What stands side by side in each array: itself, or a crosscoder's sites."""
  found = {
    key: [value] for key, value in arrays.items() if key in (*_KEYS, _SKIP)
  }
  names = sorted({key.partition(".")[2] for key in arrays} - {""})
  if names != sorted(config.columns):
    raise ValueError(
      f"{where} holds sites {', '.join(names) or 'none'}, but a crosscoder of"
      f" {', '.join(config.columns) or 'none'} was expected: fetch the folder"
      f" again, with its {CARD}"
    )
  for key in _SITE_AXES if names else ():
    found[key] = [arrays[f"{key}.{site}"] for site in config.columns]
  return found


def _shape(key: str, parts: Sequence[np.ndarray]) -> tuple[int, ...]:
  """Of an array whose sites stand side by side."""
  shape = list(parts[0].shape)
  if len(parts) > 1:
    axis = _SITE_AXES[key]
    shape[axis] = sum(part.shape[axis] for part in parts)
  return tuple(shape)


def _check_shapes(
  shapes: Mapping[str, tuple[int, ...]],
  config: SAEConfig,
  where: pathlib.Path,
) -> None:
  for key in ("W_enc", "W_dec"):
    if len(shapes[key]) != 2:
      raise ValueError(
        f"{where}: {key} has shape {shapes[key]}, expected two axes"
      )
  inputs, width = shapes["W_enc"]
  outputs = shapes["W_dec"][1]
  if config.site and not config.target_site:
    outputs = inputs
  expected = {
    "W_dec": (width, outputs),
    "b_enc": (width,),
    "b_dec": (outputs,),
    "threshold": (width,),
    _SKIP: (inputs, outputs),
  }
  for key, shape in expected.items():
    if key in shapes and shapes[key] != shape:
      raise ValueError(
        f"{where}: {key} has shape {shapes[key]}, expected {shape} for"
        f" W_enc [{inputs}, {width}] (W_enc is [D, M], W_dec [M, E])"
      )


def _check_values(key: str, value: np.ndarray, where: pathlib.Path) -> None:
  if not np.isfinite(value).all():
    raise ValueError(f"{where}: {key} holds values that are not finite")
  if key == "threshold" and (value < 0).any():
    raise ValueError(f"{where}: threshold holds negative values")

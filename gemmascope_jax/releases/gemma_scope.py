"""Gemma Scope's `params.npz`: the five folded arrays, float32.

Keys and shapes as released: `W_enc` [D, M], `W_dec` [M, D], `b_enc` [M],
`b_dec` [D], `threshold` [M]; folders
`layer_{L}/width_{W}/average_l0_{N}/params.npz`, W = 16k, 65k, 1m ..., N the
*measured* mean number of active latents. Beside the arrays stands `sae.json`,
ours: site, model, token policy, provenance. A folder without it (Google's)
loads as well; then site and model are unknown unless the path tells.
"""

from __future__ import annotations

import os
import pathlib
import re
import zipfile

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig

ARRAYS = "params.npz"
CARD = "sae.json"
FORMAT = 1
_KEYS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


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
  folder = pathlib.Path(folder)
  arrays = {
    "W_enc": sae.params.w_enc,
    "W_dec": sae.params.w_dec,
    "b_enc": sae.params.b_enc,
    "b_dec": sae.params.b_dec,
    "threshold": sae.params.threshold,
  }
  arrays = {k: np.asarray(v, np.float32) for k, v in arrays.items()}
  _check(arrays, folder / ARRAYS)
  with artifacts.atomic_write(folder / ARRAYS) as file:
    np.savez(file, **arrays)
  policy = sae.config.token_policy
  artifacts.write_json(
    folder / CARD,
    {
      "format": FORMAT,
      "family": sae.config.family,
      "site": sae.config.site,
      "model": sae.config.model,
      "token_policy": policy and policy.to_dict(),
      "provenance": sae.config.details(),
      "sha256": artifacts.sha256_file(folder / ARRAYS),
      "code": artifacts.code_version(),
    },
  )
  return folder


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


def load(path: str | os.PathLike) -> SAE:
  """Reads `params.npz`, Google's or ours.

  Args:
    path: the file, or the folder that holds it.

  Returns:
    The SAE, with numpy float32 arrays.

  Raises:
    FileNotFoundError: no such file.
    ValueError: truncated, other keys, shapes that do not fit together, values
      that are not finite, or a card that belongs to another file.
  """
  path = pathlib.Path(path)
  file = path / ARRAYS if path.is_dir() else path
  if not file.exists():
    raise FileNotFoundError(f"no {ARRAYS} at {path}")
  arrays = _read(file)
  _check(arrays, file)
  return SAE(
    params=Params(
      w_enc=arrays["W_enc"],
      b_enc=arrays["b_enc"],
      w_dec=arrays["W_dec"],
      b_dec=arrays["b_dec"],
      threshold=arrays["threshold"],
    ),
    config=_config(file),
  )


def _read(file: pathlib.Path) -> dict[str, np.ndarray]:
  """The five arrays as float32; nothing in the file is ever executed."""
  if not zipfile.is_zipfile(file):
    raise ValueError(
      f"{file} is truncated or not an npz archive: fetch or write it again"
    )
  with np.load(file, allow_pickle=False) as archive:
    missing = [key for key in _KEYS if key not in archive.files]
    if missing:
      raise ValueError(
        f"{file} lacks {', '.join(missing)}; it holds"
        f" {', '.join(sorted(archive.files))}: not a Gemma Scope SAE"
      )
    try:
      return {key: np.asarray(archive[key], np.float32) for key in _KEYS}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
      raise ValueError(
        f"{file} is damaged ({error}): fetch or write it again"
      ) from error


def _config(file: pathlib.Path) -> SAEConfig:
  card_file = file.with_name(CARD)
  if not card_file.exists():
    return _config_from_path(file)
  card = artifacts.read_json(card_file)
  if card.get("format") != FORMAT:
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
    site=card["site"],
    model=card["model"],
    token_policy=policy and TokenPolicy.from_dict(policy),
    provenance=artifacts.canonical_json(card["provenance"]),
  )


def _config_from_path(file: pathlib.Path) -> SAEConfig:
  """What Google's repository and folder names tell."""
  text = file.resolve().as_posix()
  layer = re.search(r"/layer_(\d+)/", text)
  repo = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)(?![a-z])", text)
  if not (layer and repo):
    return SAEConfig()
  size, tuning, kind = repo.groups()
  model = f"gemma-2-{size}" + ("-it" if tuning == "it" else "")
  return SAEConfig(site=f"{kind}.{layer.group(1)}", model=model)


def _check(arrays: dict[str, np.ndarray], where: pathlib.Path) -> None:
  if arrays["W_enc"].ndim != 2:
    raise ValueError(
      f"{where}: W_enc has shape {arrays['W_enc'].shape}, expected [D, M]"
    )
  site_width, width = arrays["W_enc"].shape
  expected = {
    "W_dec": (width, site_width),
    "b_enc": (width,),
    "b_dec": (site_width,),
    "threshold": (width,),
  }
  for key, shape in expected.items():
    if arrays[key].shape != shape:
      raise ValueError(
        f"{where}: {key} has shape {arrays[key].shape}, expected {shape} for"
        f" W_enc [{site_width}, {width}] (W_enc is [D, M], W_dec [M, D])"
      )
  for key, value in arrays.items():
    if not np.isfinite(value).all():
      raise ValueError(f"{where}: {key} holds values that are not finite")
  if (arrays["threshold"] < 0).any():
    raise ValueError(f"{where}: threshold holds negative values")

"""Gemma Scope 2's folders: safetensors and `config.json`.

An SAE or transcoder is `params.safetensors`, float32: `w_enc` [D, M], `w_dec`
[M, E], `b_enc`, `threshold` [M], `b_dec` [E] and maybe `affine_skip_connection`
[D, E], used as x A. A crosscoder or cross-layer transcoder of n layers is
`params_layer_{k}.safetensors`, k = 0..n-1, with `w_dec` [m, n, D]: the latents
of file k read only the k-th layer, and write it and later ones.

A crosscoder becomes one of ours, which reads its n sites side by side: n m
latents, of which the encoder is zero outside its own layer (so it takes n times
the memory), and the decoder before it. Only such a crosscoder can be written.
For a cross-layer transcoder see `clt`.

Transcoders read the MLP's input with the norm's gain, `mlp_in_gain.L`:
`gain.without(sae, lm)` makes one for our `mlp_in.L`.

Letters: D width of the input, E of the output, M latents, m latents a layer.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from gemmascope_jax import artifacts
from gemmascope_jax.releases import (
  hooks,
  identity,
  names,
  parts,
  stored,
  tensors,
)
from gemmascope_jax.releases.stored import Stored
from gemmascope_jax.sae.sae import SAE, SAEConfig

ARRAYS = "params.safetensors"
LAYER = "params_layer_{}.safetensors"
CONFIG = "config.json"
ARCHITECTURE = "jump_relu"
_LAYERS = re.compile(r"params_layer_(\d+)\.safetensors")
_FIELDS = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold")
_SKIP = "affine_skip_connection"
_MANY = re.compile(r"model\.layers\.\{(\d+(?:,\d+)+)\}\.output")


def is_one(keys: Sequence[str]) -> bool:
  """Whether a safetensors file with these arrays is of this format."""
  return {"w_enc", "w_dec", "threshold"} <= set(keys)


def layer_files(folder: str | os.PathLike) -> list[pathlib.Path]:
  """The files of a crosscoder or CLT, by layer; empty: there are none.

  Raises:
    ValueError: a layer between others is missing.
  """
  folder = pathlib.Path(folder)
  found = {
    int(match[1]): path
    for path in folder.iterdir()
    if (match := _LAYERS.fullmatch(path.name))
  }
  missing = sorted(set(range(max(found, default=-1) + 1)) - set(found))
  if missing:
    raise ValueError(
      f"{folder} lacks {', '.join(LAYER.format(k) for k in missing)}: fetch"
      " the whole folder"
    )
  return [found[k] for k in sorted(found)]


def load(path: str | os.PathLike, mesh: Mesh | None = None) -> SAE:
  """Reads an SAE, transcoder or crosscoder.

  Args:
    path: the folder, or its `params.safetensors`.
    mesh: devices to load it onto, latents over the "model" axis, each process
      reading only its own; None: NumPy arrays.

  Returns:
    The SAE. Without a `sae.json` or `config.json`, its site is known if the
    path tells (`names`).

  Raises:
    FileNotFoundError: nothing there.
    ValueError: another architecture; a CLT; files that are damaged, or whose
      arrays do not fit together.
  """
  path = pathlib.Path(path)
  folder = path if path.is_dir() else path.parent
  if path.is_dir() and (files := layer_files(path)):
    return _load_crosscoder(path, files, mesh)
  file = path / ARRAYS if path.is_dir() else path
  arrays = tensors.read(file)
  _check_keys(arrays, file)
  if len(arrays["w_dec"].shape) == 3:
    raise ValueError(
      f"{file} is one layer of a crosscoder or cross-layer transcoder (its"
      f" w_dec has three axes): load the folder {folder}"
    )
  config = identity.read(folder / identity.CARD, [file])
  known = config is not None
  config = config or _config(folder)
  found = {field: arrays[field] for field in _FIELDS}
  if _SKIP in arrays:
    found["w_skip"] = arrays[_SKIP]
  return stored.assemble(found, config, file, mesh, known)


def _check_keys(arrays: Mapping[str, Stored], file: pathlib.Path) -> None:
  missing = set(_FIELDS) - set(arrays)
  if missing:
    raise ValueError(
      f"{file} lacks {', '.join(sorted(missing))}; it holds"
      f" {', '.join(sorted(arrays)) or 'nothing'}: not of Gemma Scope 2"
    )


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """`config.json`; {} if there is none.

  Raises:
    ValueError: an architecture that is not "jump_relu".
  """
  file = folder / CONFIG
  if not file.exists():
    return {}
  found = artifacts.read_json(file)
  if found.get("architecture") != ARCHITECTURE:
    raise ValueError(
      f"{file}: architecture is {found.get('architecture')!r}; expected"
      f" {ARCHITECTURE!r}, of which all of Gemma Scope 2 is"
    )
  return found


def _config(folder: pathlib.Path) -> SAEConfig:
  """Of a folder of Google's: what its `config.json` says, or its name."""
  about = read_config(folder)
  name = names.in_path(folder.resolve().as_posix())
  if name is not None:
    about = about | {"released_as": str(name)}
  if "hf_hook_point_in" not in about:
    if name is None or name.scope != 2:
      return identity.foreign("gemma_scope_2", about) if about else SAEConfig()
    return identity.foreign(
      "gemma_scope_2",
      about,
      site=name.site,
      target_site=name.target_site,
      model=name.model,
    )
  reads = hooks.site_of_hugging_face(about["hf_hook_point_in"])
  writes = hooks.site_of_hugging_face(about.get("hf_hook_point_out"))
  return identity.foreign(
    "gemma_scope_2",
    about,
    site=reads,
    target_site=None if writes == reads else writes,
    model=hooks.model_label(about.get("model_name")),
  )


def _load_crosscoder(
  folder: pathlib.Path, files: list[pathlib.Path], mesh: Mesh | None
) -> SAE:
  config = identity.read(folder / identity.CARD, files)
  known = config is not None
  arrays = [tensors.read(file) for file in files]
  for each, file in zip(arrays, files, strict=True):
    check_layer(each, len(files), file)
  if config is None:
    config = _crosscoder_config(folder, len(files), arrays[0]["w_enc"].shape[0])
  count = len(files)
  inputs = [each["w_enc"].shape[0] for each in arrays]

  def w_enc(k: int) -> Stored:
    own = arrays[k]["w_enc"]
    rows = [
      own if j == k else stored.filled("w_enc", (inputs[j], own.shape[1]))
      for j in range(count)
    ]
    return stored.joined(rows, 0)

  def w_dec(k: int) -> Stored:
    whole = arrays[k]["w_dec"]
    latents = whole.shape[0]
    columns = [
      stored.filled("w_dec", (latents, inputs[j]))
      if j < k
      else layer_of(whole, j)
      for j in range(count)
    ]
    return stored.joined(columns, 1)

  each = lambda field: [found[field] for found in arrays]
  found = {
    "w_enc": stored.joined([w_enc(k) for k in range(count)], 1),
    "w_dec": stored.joined([w_dec(k) for k in range(count)], 0),
    "b_enc": stored.joined(each("b_enc"), 0),
    "threshold": stored.joined(each("threshold"), 0),
    "b_dec": stored.joined(each("b_dec"), 0),
  }
  return stored.assemble(found, config, folder, mesh, known)


def layer_of(w_dec: Stored, layer: int) -> Stored:
  """What is written to one layer: [m, D] of a `w_dec` [m, n, D]."""
  rows, _, columns = w_dec.shape

  def read(index: stored.Index) -> np.ndarray:
    cut = (index[0], slice(layer, layer + 1), index[1])
    return w_dec.read(cut)[:, 0, :]

  return Stored(w_dec.name, (rows, columns), read)


def check_layer(
  arrays: Mapping[str, Stored], count: int, file: pathlib.Path
) -> None:
  """Raises `ValueError` unless a file is one of `count` layers."""
  _check_keys(arrays, file)
  width, latents = (arrays["w_enc"].shape + (0, 0))[:2]
  expected = {
    "w_enc": (width, latents),
    "w_dec": (latents, count, width),
    "b_enc": (latents,),
    "threshold": (latents,),
    "b_dec": (width,),
  }
  for field, shape in expected.items():
    if arrays[field].shape != shape:
      raise ValueError(
        f"{file}: {field} has shape {arrays[field].shape}, expected {shape} for"
        f" one of {count} layers with w_enc [{width}, {latents}]"
      )


def _crosscoder_config(
  folder: pathlib.Path, count: int, width: int
) -> SAEConfig:
  about = read_config(folder)
  name = names.in_path(folder.resolve().as_posix())
  kind = about.get("type") or (name and name.kind)
  if kind != "crosscoder":
    raise ValueError(
      f"{folder} holds {count} layers of a {kind or 'model of unknown type'}"
      + (
        ", which no single SAE is: open it with gs.releases.clt.open"
        if kind == "clt"
        else f"; its {CONFIG}, which tells, is missing: fetch it as well"
      )
    )
  layers = ()
  if many := _MANY.fullmatch(about.get("hf_hook_point_in", "")):
    layers = tuple(int(layer) for layer in many[1].split(","))
  elif name is not None:
    layers = name.layers
  if len(layers) != count:
    raise ValueError(
      f"{folder} holds {count} layers, but is a crosscoder of layers"
      f" {', '.join(map(str, layers)) or 'unknown'}: fetch the whole folder"
    )
  sites = [f"res.{layer}" for layer in layers]
  return identity.foreign(
    "gemma_scope_2",
    about if name is None else about | {"released_as": str(name)},
    site="+".join(sites),
    parts=tuple((site, width) for site in sites),
    model=hooks.model_label(about.get("model_name")) or (name and name.model),
  )


def save(
  sae: SAE, folder: str | os.PathLike, l0: int | None = None
) -> pathlib.Path:
  """Writes a folder of this format, and our `sae.json`.

  Args:
    sae: at a site that the format can name.
    folder: made if needed.
    l0: which L0 it was trained for; None: unknown, and not written.

  Returns:
    The folder.

  Raises:
    ValueError: TopK; an unnamed site; a transcoder of the gain-free MLP input;
      a crosscoder whose latents read several layers, or write earlier ones.
  """
  check(sae)
  folder = pathlib.Path(folder)
  if sae.config.parts:
    files = _save_crosscoder(sae, folder)
  else:
    files = [_save_one(sae, folder)]
  artifacts.write_json(folder / CONFIG, _described(sae, l0))
  identity.write(folder / identity.CARD, files, sae.config)
  return folder


def check(sae: SAE) -> None:
  """Raises `ValueError` for what the format cannot hold, as far as shows.

  Which latents of a crosscoder read what, only `save` looks at.
  """
  if sae.config.k is not None:
    raise ValueError(
      "gemma_scope_2 holds JumpReLU alone, and this SAE keeps the"
      f" {sae.config.k} largest latents of a row: save it as 'saelens'"
    )
  _described(sae, None)


def _described(sae: SAE, l0: int | None) -> dict[str, Any]:
  """`config.json`.

  Raises:
    ValueError: as `save`, of its sites.
  """
  config = sae.config
  reads, writes = _hook(config.site), _hook(config.target_site or config.site)
  kind = "transcoder" if config.target_site else "sae"
  if config.parts:
    kind = "crosscoder"
  found = {
    "architecture": ARCHITECTURE,
    "type": kind,
    "hf_hook_point_in": reads,
    "hf_hook_point_out": writes,
    "width": sae.width,
    "model_name": hooks.model_id(config.model),
    "affine_connection": sae.params.w_skip is not None,
  }
  return found if l0 is None else found | {"l0": l0}


def _hook(site: str | None) -> str:
  """A site's name in `config.json`; a crosscoder's too."""
  sites = (site or "").split("+")
  if len(sites) > 1 and all(each.startswith("res.") for each in sites):
    layers = ",".join(each.partition(".")[2] for each in sites)
    return f"model.layers.{{{layers}}}.output"
  found = hooks.hugging_face(sites[0]) if len(sites) == 1 else None
  if found is None:
    gained = (site or "").startswith("mlp_in.")
    raise ValueError(
      f"gemma_scope_2 has no name for the site {site or 'of this SAE'}"
      + (
        ": its transcoders read the MLP's input with the norm's gain; convert"
        " with gs.releases.gain.with_gain(sae, lm), then save"
        if gained
        else "; it names res.L, mlp.L, att.L, mlp_in_gain.L, and crosscoders of"
        " res sites"
      )
    )
  return found


def _save_one(sae: SAE, folder: pathlib.Path) -> pathlib.Path:
  file = folder / ARRAYS
  tensors.write_sae(
    sae, file, {field: field for field in _FIELDS} | {"w_skip": _SKIP}
  )
  return file


def _save_crosscoder(sae: SAE, folder: pathlib.Path) -> list[pathlib.Path]:
  """A file a layer."""
  config, count = sae.config, len(sae.config.parts)
  columns = list(config.columns.values())
  widths = {width for _, width in config.parts}
  if sae.width % count or len(widths) > 1 or sae.params.w_skip is not None:
    raise ValueError(
      f"a crosscoder of gemma_scope_2 has equally many latents for each of its"
      f" sites, which are equally wide, and no skip; this one has {sae.width}"
      f" latents for sites of widths {[width for _, width in config.parts]}"
    )
  latents, width = sae.width // count, widths.pop()
  blocks = parts.checked(parts.of(sae, latents), config, folder)
  files = [folder / LAYER.format(k) for k in range(count)]
  checked = []
  for k, block in enumerate(blocks):
    own = np.zeros(sae.site_width, bool)
    own[columns[k]] = True
    if (
      block["w_enc"][~own].any() or block["w_dec"][:, : columns[k].start].any()
    ):
      raise ValueError(
        "a latent of a gemma_scope_2 crosscoder reads one layer and writes it"
        f" and later ones; of this one, latents {k * latents} to"
        f" {(k + 1) * latents - 1} do not read {config.parts[k][0]} alone, or"
        " write earlier sites: save it as 'gemma_scope'"
      )
    checked.append(
      {
        "w_enc": block["w_enc"][columns[k]],
        "w_dec": block["w_dec"].reshape(latents, count, width),
        "b_enc": block["b_enc"],
        "threshold": block["threshold"],
        "b_dec": block["b_dec"][columns[k]],
      }
    )
  for file, arrays in zip(files, checked, strict=True):
    members = [tensors.Member(key, v.shape) for key, v in arrays.items()]
    with (
      artifacts.atomic_write(file) as out,
      tensors.writing(out, members) as append,
    ):
      for key, value in arrays.items():
        append(key, value)
  return files

"""circuit-tracer's transcoders: `layer_{L}.safetensors` and `config.yaml`.

A file is one layer: `W_enc` [M, D], `W_dec` [M, E], `b_enc` [M], `b_dec` [E],
maybe `W_skip` [E, D], used as x W_skip^T, and for a JumpReLU
`activation_function.threshold` [M]; without it the latents are ReLUs. One
folder holds all layers of a model, and `config.yaml` says what they read and
write. Each layer that we write has its own `layer_{L}.sae.json`.

Cross-layer transcoders of circuit-tracer (`W_enc_{L}.safetensors`) are not read.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from gemmascope_jax import artifacts
from gemmascope_jax.releases import hooks, identity, stored, tensors
from gemmascope_jax.sae.sae import SAE, SAEConfig

ARRAYS = "layer_{}.safetensors"
CONFIG = "config.yaml"
_THRESHOLD = "activation_function.threshold"
_KEYS = {
  "w_enc": "W_enc",
  "b_enc": "b_enc",
  "w_dec": "W_dec",
  "b_dec": "b_dec",
  "w_skip": "W_skip",
  "threshold": _THRESHOLD,
}
_OPTIONAL = ("w_skip", "threshold")
_TURNED = ("w_enc", "w_skip")
_LAYER = re.compile(r"layer_(\d+)\.safetensors")


def is_one(keys: Sequence[str]) -> bool:
  """Whether a safetensors file with these arrays is of this format."""
  needed = {key for field, key in _KEYS.items() if field not in _OPTIONAL}
  return needed <= set(keys) and not set(keys) - set(_KEYS.values())


def layer_of(name: str) -> int | None:
  """The layer of a file of this name; None: it is not of a layer."""
  found = _LAYER.fullmatch(name)
  return None if found is None else int(found[1])


def layer_files(folder: str | os.PathLike) -> dict[int, pathlib.Path]:
  """The folder's files by layer."""
  return {
    layer: path
    for path in sorted(pathlib.Path(folder).iterdir())
    if (layer := layer_of(path.name)) is not None
  }


def load(
  path: str | os.PathLike, layer: int | None = None, mesh: Mesh | None = None
) -> SAE:
  """Reads one layer.

  Args:
    path: a layer's file, or the folder.
    layer: which, of a folder of several.
    mesh: devices to load it onto, latents over the "model" axis, each process
      reading only its own; None: NumPy arrays.

  Returns:
    The transcoder.

  Raises:
    FileNotFoundError: no such layer.
    ValueError: a folder of several layers without `layer`; damaged files.
  """
  file = pathlib.Path(path)
  if file.is_dir():
    there = layer_files(file)
    if layer is None and len(there) > 1:
      raise ValueError(
        f"{file} holds layers {', '.join(map(str, there))}: say which, as in"
        f" gs.sae.load({str(file)!r}, member={min(there)})"
      )
    layer = min(there, default=0) if layer is None else layer
    file = file / ARRAYS.format(layer)
  arrays = tensors.read(file)
  if not is_one(tuple(arrays)):
    raise ValueError(
      f"{file} holds {', '.join(sorted(arrays)) or 'nothing'}; expected"
      f" {', '.join(_KEYS.values())} (the last two may be absent)"
    )
  found = {
    field: arrays[key].transposed if field in _TURNED else arrays[key]
    for field, key in _KEYS.items()
    if key in arrays
  }
  if "threshold" not in found:
    latents = arrays["W_dec"].shape[:1]
    found["threshold"] = stored.filled(_THRESHOLD, latents)
  config = identity.read(_card(file), [file])
  known = config is not None
  family = "jumprelu" if _THRESHOLD in arrays else "relu"
  config = config or _config(file, family)
  return stored.assemble(found, config, file, mesh, known)


def _card(file: pathlib.Path) -> pathlib.Path:
  return file.with_name(f"{file.stem}.{identity.CARD}")


def _config(file: pathlib.Path, family: str) -> SAEConfig:
  about = _read_config(file.with_name(CONFIG))
  layer = layer_of(file.name)
  if layer is None or not about:
    return identity.foreign("circuit_tracer", about, family=family)
  site = lambda key: hooks.site_of_transformer_lens(
    f"blocks.{layer}.{about.get(key)}"
  )
  return identity.foreign(
    "circuit_tracer",
    about,
    family=family,
    site=site("feature_input_hook"),
    target_site=site("feature_output_hook"),
    model=hooks.model_label(about.get("model_name")),
  )


def _read_config(file: pathlib.Path) -> dict[str, Any]:
  import yaml

  if not file.exists():
    return {}
  try:
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
  except yaml.YAMLError as error:
    raise ValueError(f"{file} is not valid YAML: {error}") from error
  if not isinstance(found, dict):
    raise ValueError(f"{file} holds no settings")
  return found


def save(sae: SAE, folder: str | os.PathLike) -> pathlib.Path:
  """Writes one layer into a folder; give it the same folder for every layer.

  Args:
    sae: a JumpReLU or ReLU transcoder within one layer.
    folder: made if needed.

  Returns:
    The folder.

  Raises:
    ValueError: what is no such transcoder; a folder of other ones.
  """
  layer, about = check(sae)
  folder = pathlib.Path(folder)
  there = _read_config(folder / CONFIG) if folder.exists() else {}
  if there and (other := artifacts.differences(there, about)):
    raise ValueError(
      f"{folder / CONFIG} describes other transcoders ({'; '.join(other)}):"
      " save into another folder"
    )
  file = folder / ARRAYS.format(layer)
  tensors.write_sae(sae, file, _KEYS, turned=_TURNED)
  lines = [f"{key}: {json.dumps(value)}\n" for key, value in about.items()]
  artifacts.write_text(folder / CONFIG, "".join(lines))
  identity.write(_card(file), [file], sae.config)
  return folder


def check(sae: SAE) -> tuple[int, dict[str, Any]]:
  """(its layer, what `config.yaml` says of a folder of such transcoders).

  Raises:
    ValueError: what is no JumpReLU or ReLU transcoder within one layer.
  """
  config = sae.config
  layer = (config.site or "").partition(".")[2]
  layer_out = (config.target_site or "").partition(".")[2]
  reads = hooks.transformer_lens(config.site or "")
  writes = hooks.transformer_lens(config.target_site or "")
  if config.k is not None or layer != layer_out or not (reads and writes):
    raise ValueError(
      "circuit_tracer holds JumpReLU transcoders within one layer; this is"
      f" one of {config.site} to {config.target_site or 'itself'} with"
      f" k={config.k}: save it as 'gemma_scope'"
    )
  return int(layer), {
    "model_kind": "transcoder_set",
    "model_name": hooks.model_id(config.model),
    "feature_input_hook": reads.removeprefix(f"blocks.{layer}."),
    "feature_output_hook": writes.removeprefix(f"blocks.{layer}."),
    "scan": config.model,
  }

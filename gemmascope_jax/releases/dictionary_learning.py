"""dictionary_learning's folders: `ae.pt` and `config.json`.

Read: `AutoEncoder` (its latents scaled so that the decoder's rows are of unit
length, as its own loader does), `AutoEncoderNew`, `GatedAutoEncoder`,
`JumpReluAutoEncoder`, `AutoEncoderTopK`, and `BatchTopKSAE` and
`MatryoshkaBatchTopKSAE` with their running threshold, as their `encode` has it.
`ae.pt` is never unpickled, see `torch_file`; what is done to the arrays is in
`folding`.

Written: `JumpReluAutoEncoder`, and `AutoEncoderTopK` for a TopK.

A `Linear`'s weight is the transpose of our matrix.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from gemmascope_jax import artifacts
from gemmascope_jax.releases import (
  folding,
  hooks,
  identity,
  parts,
  stored,
  torch_file,
)
from gemmascope_jax.releases.stored import Stored
from gemmascope_jax.sae.sae import SAE, SAEConfig

ARRAYS = "ae.pt"
CONFIG = "config.json"
_LINEAR = {
  "encoder.weight": "w_enc",
  "encoder.bias": "b_enc",
  "decoder.weight": "w_dec",
  "decoder.bias": "b_dec",
  "decoder_bias": "b_dec",
  "bias": "b_dec",
  "b_dec": "b_dec",
}
_PLAIN = {
  "W_enc": "w_enc",
  "W_dec": "w_dec",
  "b_enc": "b_enc",
  "b_dec": "b_dec",
}
# What tells the classes apart: the keys that each has, of those that any has.
_KEYS = {
  "AutoEncoder": {"encoder.weight", "encoder.bias", "decoder.weight", "bias"},
  "AutoEncoderNew": {
    *("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"),
  },
  "GatedAutoEncoder": {
    *("encoder.weight", "decoder.weight", "decoder_bias"),
    *("r_mag", "gate_bias", "mag_bias"),
  },
  "JumpReluAutoEncoder": {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"},
  "AutoEncoderTopK": {
    *("encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "k"),
  },
  "BatchTopKSAE": {
    *("encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "k"),
    "threshold",
  },
  "MatryoshkaBatchTopKSAE": {
    *("W_enc", "W_dec", "b_enc", "b_dec", "k", "threshold", "group_sizes"),
  },
}
_FAMILIES = {
  "AutoEncoder": "relu",
  "AutoEncoderNew": "relu",
  "GatedAutoEncoder": "gated",
  "JumpReluAutoEncoder": "jumprelu",
  "AutoEncoderTopK": "topk",
  "BatchTopKSAE": "batch_topk",
  "MatryoshkaBatchTopKSAE": "batch_topk",
}
# Classes whose encoder reads x as it is.
_NO_PRE_BIAS = ("AutoEncoderNew", "JumpReluAutoEncoder")


def load(path: str | os.PathLike, mesh: Mesh | None = None) -> SAE:
  """Reads a folder.

  Args:
    path: the folder, or its `ae.pt`.
    mesh: devices to load it onto, latents over the "model" axis, each process
      reading only its own; None: NumPy arrays.

  Returns:
    The SAE on raw activations.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a class that is none of the above, or cannot be told without
      `config.json`; a threshold that was never set; damaged files.
  """
  path = pathlib.Path(path)
  file = path / ARRAYS if path.is_dir() else path
  if not file.exists():
    raise FileNotFoundError(f"no {ARRAYS} at {path}")
  tensors = torch_file.read(file)
  about = {}
  if file.with_name(CONFIG).exists():
    about = artifacts.read_json(file.with_name(CONFIG))
  kind = _class(set(tensors), about.get("trainer", {}), file)
  arrays = _folded(tensors, kind, file)
  k = None
  if kind == "AutoEncoderTopK":
    k = int(tensors["k"][...])
  config = identity.read(file.with_name(identity.CARD), [file])
  known = config is not None
  config = config or _config(about, kind, k)
  return stored.assemble(arrays, config, file, mesh, known)


def _class(keys: set[str], trainer: Mapping[str, Any], file) -> str:
  named = trainer.get("dict_class")
  fitting = [kind for kind, has in _KEYS.items() if has <= keys]
  if "k" in keys:  # of which others have no use
    fitting = [kind for kind in fitting if "k" in _KEYS[kind]]
  if named in fitting:
    return named
  if named is not None or not fitting:
    raise ValueError(
      f"{file} holds {', '.join(sorted(keys))}, which is no"
      f" {named or 'dictionary'} that we know; expected one of"
      f" {', '.join(_KEYS)}"
    )
  if len(fitting) > 1:
    raise ValueError(
      f"{file} may be of class {' or '.join(fitting)}: its {CONFIG}, with"
      " trainer.dict_class, tells; fetch it into the same folder"
    )
  return fitting[0]


def _folded(
  tensors: Mapping[str, Stored], kind: str, file
) -> dict[str, Stored]:
  """By the fields of `sae.Params`."""
  linear = "encoder.weight" in _KEYS[kind]
  found = {
    field: tensors[key].transposed
    if linear and key.endswith(".weight")
    else tensors[key]
    for key, field in (_LINEAR if linear else _PLAIN).items()
    if key in tensors and (key in _KEYS[kind])
  }
  latents = found["w_dec"].shape[:1]
  found["threshold"] = stored.filled("threshold", latents)
  if kind == "GatedAutoEncoder":
    del found["threshold"]
    found = folding.gated(
      found, *(tensors[key] for key in ("r_mag", "mag_bias", "gate_bias"))
    )
  elif kind == "JumpReluAutoEncoder":
    found["threshold"] = tensors["threshold"]
  elif _FAMILIES[kind] == "batch_topk":
    value = float(tensors["threshold"][...])
    if value < 0:
      raise ValueError(
        f"{file}: threshold is {value}, so training ended before it was set;"
        " without it what a row keeps depends on its batch: train on"
      )
    found["threshold"] = stored.filled("threshold", latents, value)
  if kind not in _NO_PRE_BIAS:
    found = folding.without_pre_bias(found)
  return folding.unit_decoder(found) if kind == "AutoEncoder" else found


def _config(about: dict[str, Any], kind: str, k: int | None) -> SAEConfig:
  trainer = about.get("trainer", {})
  site, layer = None, trainer.get("layer")
  name = trainer.get("submodule_name") or "resid_post"
  if re.fullmatch(r"resid_post(_layer_\d+)?", name) and layer is not None:
    site = f"res.{layer}"
  return identity.foreign(
    "dictionary_learning",
    about,
    family=_FAMILIES[kind],
    k=k,
    site=site,
    model=hooks.model_label(trainer.get("lm_name")),
  )


def save(sae: SAE, folder: str | os.PathLike) -> pathlib.Path:
  """Writes a folder that dictionary_learning's loader reads, and `sae.json`.

  Args:
    sae: an SAE.
    folder: made if needed.

  Returns:
    The folder.

  Raises:
    ValueError: a transcoder, a crosscoder, a skip, or a TopK with thresholds.
  """
  kind = check(sae)
  folder, config = pathlib.Path(folder), sae.config
  (p,) = parts.checked(parts.of(sae, sae.width), config, folder / ARRAYS)
  if config.k is None:
    keys = _PLAIN | {"threshold": "threshold"}
    arrays = {key: p[field] for key, field in keys.items()}
  else:
    bias = folding.with_pre_bias(p["w_enc"], p["b_enc"], p["b_dec"])
    arrays = {
      "b_dec": p["b_dec"],
      "k": np.asarray(config.k, np.int32),
      "threshold": np.asarray(-1, np.float32),
      "decoder.weight": p["w_dec"].T,
      "encoder.weight": p["w_enc"].T,
      "encoder.bias": bias,
    }
  torch_file.write(folder / ARRAYS, arrays)
  artifacts.write_json(folder / CONFIG, _described(sae, kind))
  identity.write(folder / identity.CARD, [folder / ARRAYS], config)
  return folder


def check(sae: SAE) -> str:
  """dictionary_learning's class of an SAE.

  Raises:
    ValueError: as `save`.
  """
  config, params = sae.config, sae.params
  if config.target_site or config.parts or params.w_skip is not None:
    raise ValueError(
      "dictionary_learning holds SAEs that write what they read, without a"
      f" skip; this one is of {config.site} to"
      f" {config.target_site or config.site}: save it as 'gemma_scope'"
    )
  if config.k is None:
    return "JumpReluAutoEncoder"
  if np.asarray(params.threshold).any():
    raise ValueError(
      "dictionary_learning's AutoEncoderTopK has no thresholds, and this SAE"
      f" with k={config.k} has: save it as 'gemma_scope'"
    )
  return "AutoEncoderTopK"


def as_read(sae: SAE) -> SAE:
  """What `load` gives for what `save` writes.

  The encoder of `AutoEncoderTopK` reads x - b_dec, so that b_enc is rounded once
  more, and from then on no more.
  """
  if sae.config.k is None:
    return sae
  p = sae.params
  shift = np.asarray(p.b_dec, np.float64) @ np.asarray(p.w_enc, np.float64)
  bias = folding.with_pre_bias(p.w_enc, p.b_enc, p.b_dec)
  return sae.replace(params=p.replace(b_enc=(bias - shift).astype(np.float32)))


def _described(sae: SAE, kind: str) -> dict[str, Any]:
  config = sae.config
  where, _, layer = (config.site or "").partition(".")
  return {
    "trainer": {
      "dict_class": kind,
      "activation_dim": sae.site_width,
      "dict_size": sae.width,
      "k": config.k,
      "layer": int(layer) if layer.isdigit() else None,
      "lm_name": hooks.model_id(config.model),
      "submodule_name": f"resid_post_layer_{layer}"
      if where == "res"
      else config.site,
    },
    "buffer": {"d_submodule": sae.site_width, "io": "out"},
  }

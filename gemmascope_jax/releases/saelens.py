"""SAELens's folders: `cfg.json` and `sae_weights.safetensors`.

Read, of SAELens 3 to 6: `jumprelu`, `standard` (ReLU), `topk`, `gated`, the
training-time `batchtopk` and `matryoshka_batchtopk`, and the transcoders
`transcoder`, `skip_transcoder`, `jumprelu_transcoder` and
`jumprelu_skip_transcoder`. What is done to them is in `folding`. Refused: other
architectures, and SAEs that normalise each activation as it comes, or by a
factor that is not in the folder.

Written, for SAELens 6: `jumprelu`, `topk`, and the two JumpReLU transcoders.

Matrices are [D, M] and [M, E] as ours; `W_skip` is [E, D].
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
from jax.sharding import Mesh

from gemmascope_jax import artifacts
from gemmascope_jax.releases import (
  folding,
  hooks,
  identity,
  stored,
  tensors,
)
from gemmascope_jax.releases.stored import Stored
from gemmascope_jax.sae.sae import SAE, SAEConfig

ARRAYS = "sae_weights.safetensors"
CONFIG = "cfg.json"
_LAYOUT = "6.0.0"  # whose cfg.json ours is
_FAMILIES = {
  "standard": "relu",
  "transcoder": "relu",
  "skip_transcoder": "relu",
  "jumprelu": "jumprelu",
  "jumprelu_transcoder": "jumprelu",
  "jumprelu_skip_transcoder": "jumprelu",
  "topk": "topk",
  "batchtopk": "batch_topk",
  "matryoshka_batchtopk": "batch_topk",
  "gated": "gated",
}
_SCALINGS = ("scaling_factor", "finetuning_scaling_factor")


def load(path: str | os.PathLike, mesh: Mesh | None = None) -> SAE:
  """Reads a folder.

  Args:
    path: the folder, or its `sae_weights.safetensors`.
    mesh: devices to load it onto, latents over the "model" axis, each process
      reading only its own; None: NumPy arrays.

  Returns:
    The SAE on raw activations; of an attention SAE, heads side by side.

  Raises:
    FileNotFoundError: no such files.
    ValueError: what cannot be represented (see above); damaged files.
  """
  path = pathlib.Path(path)
  file = path / ARRAYS if path.is_dir() else path
  cfg = _read_config(file.with_name(CONFIG))
  arrays = tensors.read(file)
  config = identity.read(file.with_name(identity.CARD), [file])
  known = config is not None
  config = config or _config(cfg)
  found = _folded(arrays, cfg, file)
  made = stored.assemble(found, config, file, mesh, known)
  _check_widths(arrays, cfg, file)  # a turned matrix is called that
  return made


def _check_widths(
  arrays: dict[str, Stored], cfg: dict[str, Any], file: pathlib.Path
) -> None:
  """Raises `ValueError` where `cfg.json` is of other matrices."""
  for key, name, axis in (
    ("d_in", "W_enc", 0),
    ("d_sae", "W_enc", 1),
    ("d_out", "W_dec", 1),
  ):
    shape = arrays[name].shape if name in arrays else ()
    if len(shape) == 2 and cfg.get(key, shape[axis]) != shape[axis]:
      raise ValueError(
        f"{file.with_name(CONFIG)}: {key} is {cfg[key]!r}, but {name} is"
        f" {list(shape)}: it is of another SAE; fetch both files again"
      )


def _read_config(file: pathlib.Path) -> dict[str, Any]:
  """`cfg.json`, of whichever version, with version 6's names.

  Raises:
    ValueError: an SAE that we cannot represent.
  """
  if not file.exists():
    raise FileNotFoundError(f"no {CONFIG} beside {ARRAYS} in {file.parent}")
  about = artifacts.read_json(file)
  if not isinstance(about, dict):
    raise ValueError(f"{file} is {about!r}, expected a JSON object")
  if not isinstance(about.get("metadata", {}), dict):
    raise ValueError(
      f"{file}: metadata is {about['metadata']!r}, expected a JSON object; leave"
      " it out if nothing is known"
    )
  cfg = {"metadata": {}, "apply_b_dec_to_input": True} | about
  if "metadata" not in about:  # before version 6 all stood side by side
    cfg["metadata"] = dict(about)
    cfg["metadata"].setdefault("hook_name", about.get("hook_point"))
    activation = about.get("activation_fn", about.get("activation_fn_str"))
    cfg.setdefault("architecture", "standard")
    if activation == "topk":
      arguments = about.get("activation_fn_kwargs") or {}
      cfg |= {"architecture": "topk", "k": arguments.get("k")}
    elif activation not in (None, "relu"):
      raise ValueError(
        f"{file}: activation_fn is {activation!r}; of SAELens's we have relu"
        " and topk"
      )
  architecture = cfg.get("architecture")
  if architecture not in _FAMILIES:
    raise ValueError(
      f"{file}: architecture is {architecture!r}, which is no JumpReLU or TopK;"
      f" expected one of {', '.join(_FAMILIES)}"
    )
  normalise = cfg.get("normalize_activations")
  if normalise == "expected_average_only_in" or normalise is True:
    raise ValueError(
      f"{file}: normalize_activations is {normalise!r}: activations were"
      " divided by a factor that the folder does not hold; fold it in SAELens"
      " (sae.fold_activation_norm_scaling_factor), save, and load that"
    )
  if normalise not in (None, False, "none"):
    raise ValueError(
      f"{file}: normalize_activations is {normalise!r}, which is computed from"
      " each activation; an SAE of ours is on raw activations, so it cannot be"
      " loaded"
    )
  if architecture == "topk" and not _is_count(cfg.get("k")):
    raise ValueError(f"{file}: k is {cfg.get('k')!r}, expected a number")
  return cfg


def _is_count(k: Any) -> bool:
  return isinstance(k, (int, float)) and k == int(k) and k > 0


def _config(cfg: dict[str, Any]) -> SAEConfig:
  about = cfg["metadata"]
  first = lambda hugging_face, transformer_lens: (
    hooks.site_of_hugging_face(about.get(hugging_face))
    or hooks.site_of_transformer_lens(about.get(transformer_lens))
  )
  site, target = first("hf_hook_name", "hook_name"), None
  if "transcoder" in cfg["architecture"]:
    target = first("hf_hook_name_out", "hook_name_out")
    site = site if target else None  # or it would seem to write its site
  return identity.foreign(
    "saelens",
    cfg,
    family=_FAMILIES[cfg["architecture"]],
    k=int(cfg["k"]) if cfg["architecture"] == "topk" else None,
    site=site,
    target_site=target,
    model=hooks.model_label(about.get("model_name")),
  )


def _folded(
  arrays: dict[str, Stored], cfg: dict[str, Any], file: pathlib.Path
) -> dict[str, Stored]:
  """By the fields of `sae.Params`."""
  for key in _SCALINGS:
    if key in arrays and not (arrays[key][...] == 1).all():
      raise ValueError(
        f"{file}: {key} is not 1 everywhere, so latents are scaled after their"
        " threshold; fold it into W_dec in SAELens, save, and load that"
      )
  kind = _FAMILIES[cfg["architecture"]]
  needed = {
    "gated": ("r_mag", "b_mag", "b_gate"),
    "jumprelu": ("b_enc", "threshold"),
    "batch_topk": ("b_enc", "topk_threshold"),
  }.get(kind, ("b_enc",))
  arrays = _with_threshold(arrays)
  missing = {"W_enc", "W_dec", "b_dec", *needed} - set(arrays)
  if missing:
    raise ValueError(
      f"{file} lacks {', '.join(sorted(missing))}; it holds"
      f" {', '.join(sorted(arrays)) or 'nothing'}: not an SAE of architecture"
      f" {cfg['architecture']!r}"
    )
  found = {
    "w_enc": arrays["W_enc"],
    "w_dec": arrays["W_dec"],
    "b_dec": arrays["b_dec"],
  }
  if "W_skip" in arrays:
    found["w_skip"] = arrays["W_skip"].transposed
  latents = arrays["W_dec"].shape[:1]
  if kind == "gated":
    found = folding.gated(found, *(arrays[key] for key in needed))
  else:
    found["b_enc"] = arrays["b_enc"]
    found["threshold"] = stored.filled("threshold", latents)
  if kind == "jumprelu":
    found["threshold"] = arrays["threshold"]
  elif kind == "batch_topk":
    value = float(np.asarray(arrays["topk_threshold"][...]))
    found["threshold"] = stored.filled("topk_threshold", latents, value)
  if cfg["apply_b_dec_to_input"] and "transcoder" not in cfg["architecture"]:
    found = folding.without_pre_bias(found)
  if cfg.get("rescale_acts_by_decoder_norm") and kind in (
    "topk",
    "batch_topk",
  ):
    found = folding.unit_decoder(found)
  return found


def _with_threshold(arrays: dict[str, Stored]) -> dict[str, Stored]:
  """Older checkpoints of training hold the threshold's logarithm."""
  log = arrays.get("log_threshold")
  if log is None or "threshold" in arrays:
    return arrays
  read = lambda index: np.exp(np.asarray(log[index], np.float64))
  return arrays | {"threshold": Stored(log.name, log.shape, read)}


def save(sae: SAE, folder: str | os.PathLike) -> pathlib.Path:
  """Writes a folder that `sae_lens.SAE.load_from_disk` loads, and `sae.json`.

  Args:
    sae: an SAE or transcoder.
    folder: made if needed.

  Returns:
    The folder.

  Raises:
    ValueError: a crosscoder; a TopK that is a transcoder or has thresholds.
  """
  architecture = check(sae)
  folder = pathlib.Path(folder)
  keys = {
    "w_enc": "W_enc",
    "b_enc": "b_enc",
    "w_dec": "W_dec",
    "b_dec": "b_dec",
    "w_skip": "W_skip",
  }
  if architecture != "topk":
    keys["threshold"] = "threshold"
  tensors.write_sae(sae, folder / ARRAYS, keys, turned=("w_skip",))
  artifacts.write_json(folder / CONFIG, _described(sae, architecture))
  identity.write(folder / identity.CARD, [folder / ARRAYS], sae.config)
  return folder


def check(sae: SAE) -> str:
  """SAELens's architecture of an SAE.

  Raises:
    ValueError: as `save`.
  """
  config, params = sae.config, sae.params
  if config.parts:
    raise ValueError(
      f"SAELens has no crosscoders, and this is one of {config.site}: save it"
      " as 'gemma_scope'"
    )
  architecture = "jumprelu"
  if config.target_site or params.w_skip is not None:
    architecture = "jumprelu_transcoder"
    if params.w_skip is not None:
      architecture = "jumprelu_skip_transcoder"
  if config.k is not None:
    if architecture != "jumprelu" or np.asarray(params.threshold).any():
      raise ValueError(
        f"SAELens's topk has neither thresholds nor another target, and this"
        f" SAE, with k={config.k}, has one of them: save it as 'gemma_scope'"
      )
    architecture = "topk"
  return architecture


def _described(sae: SAE, architecture: str) -> dict[str, Any]:
  config = sae.config
  site, target = config.site or "", config.target_site
  metadata = {
    "sae_lens_version": _LAYOUT,
    "sae_lens_training_version": None,
    "model_name": hooks.model_id(config.model),
    "hook_name": hooks.transformer_lens(site),
    "hf_hook_name": hooks.hugging_face(site),
    "hook_head_index": None,
    "prepend_bos": True,
    "written_by": f"gemmascope_jax {artifacts.code_version()}",
  }
  if target:
    metadata |= {
      "hook_name_out": hooks.transformer_lens(target),
      "hf_hook_name_out": hooks.hugging_face(target),
    }
  if config.token_policy is not None:
    excluded = [int(i) for i in config.token_policy.excluded_ids]
    metadata["exclude_special_tokens"] = excluded
  heads = site.startswith("att.") and not target
  found = {
    "architecture": architecture,
    "d_in": sae.site_width,
    "d_sae": sae.width,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": False,
    "normalize_activations": "none",
    "reshape_activations": "hook_z" if heads else "none",
    "metadata": metadata,
  }
  if architecture == "topk":
    found |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
  if "transcoder" in architecture:
    found["d_out"] = sae.target_width
  return found

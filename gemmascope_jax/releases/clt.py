"""Cross-layer transcoders of Gemma Scope 2, read a layer at a time.

A latent reads the MLP's input of one layer and writes the MLP's output of that
layer and of later ones (skips stay in their layer):

  f_k = JumpReLU_theta_k(x_k W_enc_k + b_enc_k),                  [m] each
  y_j = sum_{k <= j} f_k W_dec_k[:, j] + b_dec_j + x_j A_j

with x_k the input *with* the norm's gain (`mlp_in_gain.k`). No single layer
reconstructs anything, so a CLT is no `SAE`, but a thing of its own; `layer`
gives one layer's latents as a transcoder, for what looks at latents alone.

The decoders of one layer alone are n times an SAE's, so they stay in the files
and a slice of them is read when it is needed.

Letters: D width of the model, m latents a layer, n layers.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax.releases import (
  gemma_scope_2,
  hooks,
  identity,
  names,
  stored,
  tensors,
)
from gemmascope_jax.releases.stored import Stored
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig

_SKIP = "affine_skip_connection"


@dataclasses.dataclass(frozen=True)
class CLT:
  """A cross-layer transcoder whose arrays stay in its files.

  Attributes:
    layers: of each layer, its arrays by their names in the files.
    model: label of the language model; None if unknown.
    about: what the files say of it.
    where: the folder.
  """

  layers: tuple[Mapping[str, Stored], ...]
  model: str | None
  about: dict
  where: pathlib.Path

  @property
  def width(self) -> int:
    """Latents of all layers together."""
    return sum(arrays["b_enc"].shape[0] for arrays in self.layers)

  def encode(self, layer: int, x: jax.Array) -> jax.Array:
    """f_k: float32 [..., m] for x [..., D], at `mlp_in_gain.LAYER`."""
    return self.layer(layer).encode(x)

  def decode(
    self,
    target: int,
    latents: Mapping[int, jax.Array],
    x: jax.Array | None = None,
  ) -> jax.Array:
    """y_j: what is written to one layer's MLP output.

    Args:
      target: j.
      latents: f_k, [..., m], of every k <= j; later ones are not used.
      x: [..., D], the target layer's own input; only with skips.

    Returns:
      float32 [..., D], at `mlp.TARGET`.

    Raises:
      ValueError: the latents of a layer, or x, are missing.
    """
    missing = [k for k in range(target + 1) if k not in latents]
    if missing:
      raise ValueError(
        f"mlp.{target} is written by layers 0..{target}, but the latents of"
        f" {missing} are not given"
      )
    own = self.layers[target]
    b_dec = self._values(target, "b_dec", own["b_dec"])
    out = b_dec.reshape((1,) * (jnp.ndim(latents[target]) - 1) + (-1,))
    for k in range(target + 1):
      w_dec = self._values(k, "w_dec", self._written(k, target))
      out = out + jnp.matmul(latents[k], w_dec, precision="highest")
    if _SKIP in own:
      if x is None:
        raise ValueError(
          "this CLT has skip connections: give x, the layer's own input"
        )
      skip = self._values(target, _SKIP, own[_SKIP])
      out = out + jnp.matmul(x.astype(jnp.float32), skip, precision="highest")
    return out

  def layer(self, layer: int) -> SAE:
    """One layer's latents as a transcoder to its own MLP output.

    It writes what this layer's latents add to `mlp.LAYER`, with that layer's
    bias and skip. That is no reconstruction: what earlier layers add is not in
    it, nor what these latents add to later layers. (SAELens sums the decoders
    over all layers instead; the latents are the same.)
    """
    if not 0 <= layer < len(self.layers):
      raise ValueError(
        f"layer {layer}: this CLT has layers 0..{len(self.layers) - 1}"
      )
    arrays = self.layers[layer]
    read = lambda field, value: self._values(layer, field, value)
    return SAE(
      Params(
        w_enc=read("w_enc", arrays["w_enc"]),
        b_enc=read("b_enc", arrays["b_enc"]),
        w_dec=read("w_dec", self._written(layer, layer)),
        b_dec=read("b_dec", arrays["b_dec"]),
        threshold=read("threshold", arrays["threshold"]),
        w_skip=read(_SKIP, arrays[_SKIP]) if _SKIP in arrays else None,
      ),
      SAEConfig(
        site=f"{names.GAINED}.{layer}",
        target_site=f"mlp.{layer}",
        model=self.model,
        provenance=identity.foreign(
          "gemma_scope_2", self.about | {"layer_of_clt": layer}
        ).provenance,
      ),
    )

  def _written(self, layer: int, target: int) -> Stored:
    return gemma_scope_2.layer_of(self.layers[layer]["w_dec"], target)

  def _values(self, layer: int, field: str, value: Stored) -> np.ndarray:
    file = self.where / gemma_scope_2.LAYER.format(layer)
    found = np.array(value[...], np.float32)
    stored.check_values(field, found, file)
    return found


def open(folder: str | os.PathLike) -> CLT:
  """Opens a CLT's folder; reads no array.

  Args:
    folder: with `params_layer_{k}.safetensors` of every layer.

  Raises:
    FileNotFoundError: there are none.
    ValueError: files that do not belong together, or are of a crosscoder.
  """
  folder = pathlib.Path(folder)
  files = gemma_scope_2.layer_files(folder)
  if not files:
    raise FileNotFoundError(
      f"no {gemma_scope_2.LAYER.format(0)} in {folder}: not a CLT"
    )
  about = gemma_scope_2.read_config(folder)
  name = names.in_path(folder.resolve().as_posix())
  kind = about.get("type") or (name and name.kind)
  if kind not in ("clt", None):
    raise ValueError(f"{folder} is a {kind}, no CLT: use gs.sae.load")
  if name is not None:
    about = about | {"released_as": str(name)}
  layers = tuple(tensors.read(file) for file in files)
  for arrays, file in zip(layers, files, strict=True):
    gemma_scope_2.check_layer(arrays, len(files), file)
  model = hooks.model_label(about.get("model_name"))
  return CLT(layers, model or (name and name.model), about, folder)

"""Arrays that lie in a file and are read in parts, and the SAE they make.

A format says which stored array, turned or put together how, is which of an
SAE's parameters; what is common to all formats happens here: shapes must fit
together, values must be finite and thresholds not negative, and a mesh gets
from the file only what its devices hold.

Letters: D width of the input, E of the output, M latents.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gemmascope_jax import parallel
from gemmascope_jax.gemma import config as gemma_config
from gemmascope_jax.gemma import sites
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig

Index = tuple[slice, ...]

_NAMES = {
  "w_enc": "W_enc",
  "b_enc": "b_enc",
  "w_dec": "W_dec",
  "b_dec": "b_dec",
  "threshold": "threshold",
  "w_skip": "affine_skip_connection",
}


@dataclasses.dataclass(frozen=True)
class Stored:
  """An array in a file.

  Attributes:
    name: what the file calls it.
    shape: its axes.
    read: from one slice an axis (start and stop set, no step) to that part.
  """

  name: str
  shape: tuple[int, ...]
  read: Callable[[Index], np.ndarray]

  def __getitem__(self, index: Any) -> np.ndarray:
    if index is Ellipsis:
      index = ()
    if not isinstance(index, tuple):
      index = (index,)
    index = (*index, *[slice(None)] * (len(self.shape) - len(index)))
    return self.read(
      tuple(
        slice(*part.indices(size)[:2])
        for part, size in zip(index, self.shape, strict=True)
      )
    )

  @property
  def transposed(self) -> Stored:
    """[B, A] for [A, B]."""
    return Stored(
      self.name,
      self.shape[::-1],
      lambda index: np.asarray(self.read(index[::-1])).T,
    )


def array(name: str, value: np.ndarray) -> Stored:
  """An array in memory, or a map of a file."""
  return Stored(name, value.shape, lambda index: value[index])


def filled(name: str, shape: Sequence[int], value: float = 0) -> Stored:
  """The same number everywhere."""
  sizes = lambda index: [part.stop - part.start for part in index]
  return Stored(
    name,
    tuple(shape),
    lambda index: np.full(sizes(index), value, np.float32),
  )


def joined(parts: Sequence[Stored], axis: int) -> Stored:
  """Arrays one after another along an axis; their other axes are the same."""
  if len(parts) == 1:
    return parts[0]
  shape = list(parts[0].shape)
  ends = np.cumsum([part.shape[axis] for part in parts]).tolist()
  shape[axis] = ends[-1]

  def read(index: Index) -> np.ndarray:
    found = []
    for part, end in zip(parts, ends, strict=True):
      size = part.shape[axis]
      first = max(index[axis].start - (end - size), 0)
      last = min(index[axis].stop - (end - size), size)
      if first < last:
        cut = slice(first, last)
        found.append(part.read((*index[:axis], cut, *index[axis + 1 :])))
    return found[0] if len(found) == 1 else np.concatenate(found, axis=axis)

  return Stored(parts[0].name, tuple(shape), read)


def assemble(
  arrays: Mapping[str, Stored],
  config: SAEConfig,
  where: str | os.PathLike,
  mesh: Mesh | None = None,
  known: bool = False,
) -> SAE:
  """The SAE that stored arrays make.

  Args:
    arrays: by the fields of `sae.Params`, in their shapes.
    config: what the SAE is for.
    where: the file, for errors.
    mesh: devices to put it on, latents over the "model" axis; None: NumPy.
    known: whether `config` was written by us, with these arrays; else the
      model's and site's width is compared as well.

  Returns:
    The SAE, float32.

  Raises:
    ValueError: shapes that do not fit together or the model; values that are
      not finite; negative thresholds.
  """
  shapes = {field: stored.shape for field, stored in arrays.items()}
  labels = {field: stored.name for field, stored in arrays.items()}
  check_shapes(shapes, config, where, labels)
  if not known:
    _check_widths(shapes, config, where)

  def values(field: str, index: Any = ...) -> np.ndarray:
    found = np.asarray(arrays[field][index], np.float32)
    check_values(field, found, where, labels)
    return found

  fields = Params(
    **{f.name: f.name for f in dataclasses.fields(Params) if f.name in arrays}
  )
  if mesh is None:
    return SAE(params=jax.tree.map(values, fields), config=config)
  like = jax.tree.map(
    lambda field: jax.ShapeDtypeStruct(shapes[field], np.float32), fields
  )
  params = jax.tree.map(
    lambda field, sharding: jax.make_array_from_callback(
      shapes[field], sharding, lambda index: values(field, index)
    ),
    fields,
    parallel.shardings(like, mesh, parallel.FOLDED_RULES),
  )
  return SAE(params=params, config=config)


def check_shapes(
  shapes: Mapping[str, tuple[int, ...]],
  config: SAEConfig,
  where: str | os.PathLike,
  labels: Mapping[str, str] = _NAMES,
) -> None:
  """Raises `ValueError` where parameters do not fit together.

  Args:
    shapes: by the fields of `sae.Params`.
    config: whether it writes what it reads.
    where: the file, for the error.
    labels: what the file calls the fields.
  """
  for field in ("w_enc", "w_dec"):
    if len(shapes[field]) != 2:
      raise ValueError(
        f"{where}: {labels[field]} has shape {shapes[field]}, expected two axes"
      )
  inputs, width = shapes["w_enc"]
  if not (inputs and width):
    raise ValueError(
      f"{where}: {labels['w_enc']} is [{inputs}, {width}]: no latents, or no"
      " inputs; the file is damaged"
    )
  if config.k is not None and config.k > width:
    raise ValueError(
      f"{where}: k is {config.k}, but there are {width} latents: the settings"
      " are of another SAE"
    )
  outputs = shapes["w_dec"][1]
  if config.site and not config.target_site:
    outputs = inputs
  expected = {
    "w_dec": (width, outputs),
    "b_enc": (width,),
    "b_dec": (outputs,),
    "threshold": (width,),
    "w_skip": (inputs, outputs),
  }
  turned = shapes["b_enc"] == (inputs,) != (width,)
  for field, shape in expected.items():
    if field in shapes and shapes[field] != shape:
      raise ValueError(
        f"{where}: {labels[field]} has shape {shapes[field]}, expected {shape}"
        f" for {labels['w_enc']} [{inputs}, {width}] (W_enc is [D, M], W_dec"
        " [M, E])" + ("; the matrices are transposed" if turned else "")
      )


def check_values(
  field: str,
  value: np.ndarray,
  where: str | os.PathLike,
  labels: Mapping[str, str] = _NAMES,
) -> None:
  """Raises `ValueError` for what is not finite, or a negative threshold."""
  label = labels.get(field, field)
  if not np.isfinite(value).all():
    raise ValueError(f"{where}: {label} holds values that are not finite")
  if field == "threshold" and (value < 0).any():
    raise ValueError(
      f"{where}: {label} holds negative values, the lowest {value.min():.4g};"
      " a threshold of a JumpReLU is 0 or more (0 is a ReLU)"
    )


def _check_widths(
  shapes: Mapping[str, tuple[int, ...]],
  config: SAEConfig,
  where: str | os.PathLike,
) -> None:
  """Compares with the model's widths, where the model and site are known."""
  model = gemma_config.PRESETS.get(config.model or "")
  ends = {
    "reads": (config.site, shapes["w_enc"][0]),
    "writes": (config.target_site, shapes["w_dec"][1]),
  }
  for verb, (site, found) in ends.items():
    kind, _, layer = (site or "").partition(".")
    if model is None or kind not in sites.KINDS or not layer.isdigit():
      continue
    expected = sites.site_width(model, site)
    if found != expected:
      raise ValueError(
        f"{where}: it {verb} activations of width {found}, but {site} of"
        f" {model.name} is {expected} wide: the SAE is of another model or site"
      )

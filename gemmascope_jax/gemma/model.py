"""Gemma's forward pass: a pure function with taps and edits.

Layers are a Python loop over separate parameters, not a scan: it compiles in
seconds, needs the least memory, follows the checkpoints' layout, and stops (or
starts) at any layer with only those layers' parameters present.

Letters: S sequences, T tokens, D width, V vocabulary, N heads, H head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax.gemma import kv_cache, on_mesh, sites
from gemmascope_jax.gemma.attention import Attention
from gemmascope_jax.gemma.config import GemmaConfig
from gemmascope_jax.gemma.layers import MLP, Precision, RMSNorm, rope_tables

Array = jax.Array
Edit = Callable[[Array], Array]
Params = Mapping[str, Any]

# The precision of every matrix product, unless a call says otherwise: float32
# products in full float32 wherever they run (paper, 3.2; architecture, 6).
PRECISION = "highest"


class Output(flax.struct.PyTreeNode):
  """What `forward` returns.

  Attributes:
    logits: float32 [S, T, V], soft-capped, or None.
    acts: activation [S, T, width of the site] for each tapped site.
    residual: [S, T, D], the stream after the last layer that ran, before the
      final norm: what `token_losses` reads.
    cache: with the tokens of this call, if one was given.
  """

  logits: Array | None
  acts: dict[str, Array]
  residual: Array
  cache: kv_cache.Cache | None = None


class Embedder(nn.Module):
  """Token embeddings, tied with the unembedding."""

  config: GemmaConfig
  dtype: jnp.dtype

  def setup(self):
    """Declares the table."""
    shape = (self.config.vocab_size, self.config.width)
    self.embedding = self.param(
      "embedding", nn.initializers.normal(0.02), shape, self.dtype
    )

  def encode(self, tokens: Array) -> Array:
    """int [S, T] -> [S, T, D]; a token outside the vocabulary gives NaN."""
    # The multiplier is rounded to the activations' dtype, as in training:
    # 59.75 and not 59.87 for 9B in bfloat16 (paper, section 10).
    scale = jnp.asarray(self.config.width**0.5, self.dtype)
    return jnp.take(self.embedding, tokens, axis=0, mode="fill") * scale

  def decode(self, x: Array, precision: Precision) -> Array:
    """Normalised [S, T, D] -> soft-capped logits, float32 [S, T, V]."""
    logits = jnp.einsum(
      "std,vd->stv",
      x,
      self.embedding,
      precision=precision,
      preferred_element_type=jnp.float32,
    )
    cap = self.config.final_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


class Block(nn.Module):
  """One layer: attention, then the MLP, each between two norms."""

  config: GemmaConfig
  layer: int
  dtype: jnp.dtype
  precision: Precision
  taps: frozenset[sites.Site]
  edits: Mapping[sites.Site, Edit]
  across_positions: bool = True

  @nn.compact
  def __call__(
    self,
    x: Array,
    rope: tuple[Array, Array],
    mask: Array | None,
    cached: kv_cache.KeysValues | None,
    slot: int | Array,
  ) -> tuple[Array, dict[sites.Site, Array], kv_cache.KeysValues | None]:
    """[S, T, D] -> the stream after the block, tapped activations, cache."""
    config = self.config
    acts = {}

    def visit(kind: str, value: Array) -> Array:
      """Records the value of a site, and returns it or its replacement."""
      site = sites.Site(kind, self.layer)
      seen = value.astype(self.dtype)
      if site in self.taps:
        acts[site] = seen
      if site not in self.edits:
        return value
      edited = jnp.asarray(self.edits[site](seen))
      if edited.shape != seen.shape:
        raise ValueError(
          f"the edit of site {site} returned shape {edited.shape}: expected"
          f" {seen.shape}"
        )
      return edited.astype(value.dtype)

    norm = functools.partial(RMSNorm, config.norm_eps, self.dtype)
    y = norm(name="pre_attention_norm")(x)
    local = config.is_local(self.layer)
    attention = Attention(
      config,
      local,
      self.dtype,
      self.precision,
      self.across_positions,
      name="attn",
    )
    y, cached = attention(
      y, rope, mask, functools.partial(visit, "att"), cached, slot
    )
    x = x + norm(name="post_attention_norm")(y)
    y = norm(name="pre_mlp_norm")(x, functools.partial(visit, "mlp_in"))
    y = MLP(config.mlp_width, self.dtype, self.precision, name="mlp")(y)
    x = x + visit("mlp", norm(name="post_mlp_norm")(y))
    return visit("res", x), acts, cached


class Model(nn.Module):
  """The whole model as linen; use it through `forward` and `init`."""

  config: GemmaConfig
  dtype: jnp.dtype
  precision: Precision = PRECISION
  across_positions: bool = True

  @nn.compact
  def __call__(
    self,
    tokens: Array,
    mask: Array | None,
    taps: frozenset[sites.Site],
    edits: Mapping[sites.Site, Edit],
    layers: range,
    stream: Array | None,
    logits: bool,
    cache: kv_cache.Cache | None,
  ) -> tuple[
    Array | None, dict[sites.Site, Array], Array, kv_cache.Cache | None
  ]:
    """Runs `layers` on the embeddings, or on `stream` if it is given."""
    config = self.config
    embedder = Embedder(config, self.dtype, name="embedder")
    x = embedder.encode(tokens) if stream is None else stream
    slot, caches = 0, {}
    if cache is None:
      positions = _positions(tokens.shape[1], mask)
    else:
      slot, caches = cache.length, dict(cache.layers)
      if mask is None:
        mask = jnp.ones(tokens.shape, jnp.bool_)
      cache, positions = cache.extend(mask)
      mask = cache.mask
      # A traced length can't be checked: no number is better than a wrong one.
      x = jnp.where(cache.length <= cache.capacity, x, jnp.nan)
    ropes = {
      True: rope_tables(positions, config.head_dim, config.rope_base_local),
      False: rope_tables(
        positions,
        config.head_dim,
        config.rope_base_global,
        config.rope_factor_global,
      ),
    }
    acts = {}
    for layer in layers:
      name = f"layer_{layer}"
      block = Block(
        config,
        layer,
        self.dtype,
        self.precision,
        frozenset(site for site in taps if site.layer == layer),
        {site: edit for site, edit in edits.items() if site.layer == layer},
        self.across_positions,
        name=name,
      )
      x, seen, cached = block(
        x, ropes[config.is_local(layer)], mask, caches.get(name), slot
      )
      acts |= seen
      if cache is not None:
        caches[name] = cached
    if cache is not None:
      cache = cache.replace(layers=caches)
    if not logits:
      return None, acts, x, cache
    y = RMSNorm(config.norm_eps, self.dtype, name="final_norm")(x)
    return embedder.decode(y, self.precision), acts, x, cache


def _positions(tokens: int, mask: Array | None) -> Array:
  """int32 [S, T]: real tokens before this one; [1, T] without a mask."""
  if mask is None:
    return jnp.arange(tokens, dtype=jnp.int32)[None]
  return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)


def forward(
  config: GemmaConfig,
  params: Params,
  tokens: Array,
  *,
  taps: Iterable[str | sites.Site] = (),
  edits: Mapping[str | sites.Site, Edit] | None = None,
  num_layers: int | None = None,
  mask: Array | None = None,
  logits: bool = True,
  start: tuple[int, Array] | None = None,
  cache: kv_cache.Cache | None = None,
  precision: Precision = PRECISION,
  across_positions: bool = True,
) -> Output:
  """Runs the model.

  Pure; under `jax.jit`, config, taps, edits, num_layers, precision and
  across_positions are static. Differentiable in params, in `start` and through
  the edits.

  Args:
    config: the architecture.
    params: its parameters; only layers that run need to be there. Their dtype
      (float32 or bfloat16) is that of the activations; norms and softmax are
      computed in float32 whatever it is. Those that know their mesh (see
      `on_mesh`) have it split the sequences.
    tokens: int [S, T], of the vocabulary; that is checked of NumPy's arrays.
    taps: sites to return, such as "res.12".
    edits: for each site to replace, a pure function [S, T, width] -> the same
      shape: an SAE's reconstruction, an ablation, a steering vector. Its
      result is cast to the activations' dtype. A site both tapped and edited
      returns its value before the edit. An edit of `mlp_in.L` is made before
      the norm's gain is applied.
    num_layers: run layers 0..num_layers-1 only, without logits; None: all.
    mask: bool [S, T], True for real tokens. Padding may stand on either side;
      positions count real tokens, and padding is no key. What is returned at
      padding is finite and means nothing. None: all tokens are real.
    logits: False: leave the logits out (float32 [S, T, V] is large; see
      `token_losses`).
    start: (layer, residual [S, T, D]): begin at block `layer` with this
      stream, as `res.{layer-1}` would give; the tokens then only give the
      shape. For variants that share the layers before a splice.
    cache: of the tokens before these, from `kv_cache.empty` or the output of
      the last call; of the same layers. What is returned is about these tokens
      only, and the same as if all had been given at once. Tokens beyond a
      traced cache's capacity give NaN.
    precision: of every matrix product, as `jax.lax.Precision`.
    across_positions: False: the same values, but gradients do not flow from
      one position to another. The gradient of a sum over positions is then, at
      each position, that of its own term alone: all of them for the price of
      one. (What comes later cannot reach an earlier position, and what came
      earlier does not depend on a later one, so this cut changes nothing
      else.)

  Returns:
    The logits, the tapped activations, the last residual stream and the cache.

  Raises:
    ValueError: an id that is not in the vocabulary, a site that the model lacks
      or that does not run, a layer whose parameters are missing, a number of
      layers out of range, an edit that changes the shape, a residual stream,
      mask or cache of another shape, a mask that is not bool, a cache that lacks a layer, is full, or stands
      beside across_positions=False.
  """
  total = config.num_layers
  first, stream = (0, None) if start is None else start
  last = total if num_layers is None else num_layers
  if not 0 <= first <= last <= total:
    raise ValueError(
      f"layers {first}..{last - 1}: {config.name} has layers 0..{total - 1};"
      " expected 0 <= start <= num_layers <= that number"
    )
  if stream is not None and stream.shape != (*tokens.shape, config.width):
    raise ValueError(
      f"start: a residual stream of shape {stream.shape}, expected"
      f" {(*tokens.shape, config.width)}: tokens and width of {config.name}"
    )
  if mask is not None:
    _check_mask(mask, tokens)
  if stream is None:
    _check_tokens(config, tokens)
  layers = range(first, last)
  names = {name: _runs(config, name, layers) for name in taps}
  edits = {
    _runs(config, name, layers): edit for name, edit in (edits or {}).items()
  }
  with_logits = logits and num_layers is None
  dtype = _require(config, params, layers, with_logits, stream)
  if cache is not None:
    if not across_positions:
      raise ValueError(
        "across_positions=False with a cache: expected no cache, as gradients"
        " are of whole sequences"
      )
    kv_cache.check(config, cache, tokens.shape, layers, dtype)
  if stream is not None:
    stream = on_mesh.by_sequence(params, stream.astype(dtype))
  tokens = on_mesh.by_sequence(params, tokens)
  mask = on_mesh.by_sequence(params, mask)
  params = on_mesh.together(params, table=with_logits)
  model = Model(config, dtype, precision, across_positions)
  found, acts, residual, cache = model.apply(
    {"params": params},
    tokens,
    mask,
    frozenset(names.values()),
    edits,
    layers,
    stream,
    with_logits,
    cache,
  )
  return Output(
    logits=found,
    acts={str(name): acts[site] for name, site in names.items()},
    residual=residual,
    cache=cache,
  )


def _check_tokens(config: GemmaConfig, tokens: Array) -> None:
  """Names an id past the vocabulary, whose embedding would be NaN.

  Of a NumPy array only: values on a device, or traced ones, are not waited for.
  """
  if not isinstance(tokens, np.ndarray) or not tokens.size:
    return
  wrong = (tokens < 0) | (tokens >= config.vocab_size)
  if wrong.any():
    at = [int(i) for i in np.argwhere(wrong)[0]]
    raise ValueError(
      f"token id {tokens[tuple(at)]} at {at}: {config.name} has ids from 0 to"
      f" {config.vocab_size - 1}; were these tokens made with another tokenizer?"
    )


def _check_mask(mask: Array, tokens: Array) -> None:
  if mask.shape != tokens.shape:
    raise ValueError(
      f"mask of shape {mask.shape} for tokens of shape {tokens.shape}"
    )
  if mask.dtype != jnp.bool_:
    raise ValueError(
      f"mask of dtype {mask.dtype}: expected bool, True for real tokens"
    )


def _runs(config: GemmaConfig, name: str | sites.Site, layers: range):
  """The parsed site, of a layer that runs."""
  site = sites.check(config, name)
  if site.layer not in layers:
    raise ValueError(
      f"site {site}: only layers {layers.start}..{layers.stop - 1} of"
      f" {config.name} run here; change num_layers or start"
    )
  return site


def _require(config, params, layers, logits, stream) -> jnp.dtype:
  """Checks that the parameters needed are there; returns their dtype."""
  needed = [f"layer_{layer}" for layer in layers]
  if stream is None or logits:
    needed.append("embedder")
  if logits:
    needed.append("final_norm")
  missing = [name for name in needed if name not in params]
  if missing:
    raise ValueError(
      f"parameters of {config.name}: {', '.join(missing)} missing; load more"
      " layers, or run fewer (num_layers)"
    )
  leaves = jax.tree.leaves([params[name] for name in needed])
  return leaves[0].dtype if leaves else stream.dtype


def init(
  config: GemmaConfig, key: Array, dtype: Any = jnp.float32
) -> dict[str, Any]:
  """Random parameters: normal with deviation 0.02, norm scales zero.

  For tests and, through `jax.eval_shape`, for shapes without numbers. The same
  key gives the same numbers on one kind of machine only.

  Args:
    config: the architecture.
    key: a JAX random key.
    dtype: of all parameters.

  Returns:
    The tree of parameters, nested dicts of [...] arrays.
  """
  model = Model(config, jnp.dtype(dtype))
  tokens = jnp.zeros((1, 1), jnp.int32)
  layers = range(config.num_layers)

  @jax.jit  # so that the forward pass, whose result is dropped, never runs
  def parameters(key):
    # A generator that is an operation of the compiler's: hundreds of arrays
    # from JAX's default one take it seconds.
    key = jax.random.key(jax.random.bits(key), impl="rbg")
    arguments = (tokens, None, frozenset(), {}, layers, None, True, None)
    return model.init(key, *arguments)["params"]

  return parameters(key)

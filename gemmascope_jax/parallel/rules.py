"""Partition rules: which axis of which parameter is split over which devices.

A table of (pattern of the parameter's path, `PartitionSpec`); the first match
counts. A path is the keys joined by slashes: "layer_3/attn/q".
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gemmascope_jax.parallel.mesh import DATA, MODEL

Rules = Sequence[tuple[str, P]]

# Tensor parallelism: words, heads and hidden units are split; W_O and the
# down-projection are split along the axis that is summed over.
LM_RULES: Rules = (
  (r"embedder/embedding", P(MODEL, None)),  # [V, D]
  (r"layer_\d+/attn/[qkv]", P(None, MODEL, None)),  # [D, N or K, H]
  (r"layer_\d+/attn/o", P(MODEL, None, None)),  # [N, H, D]
  (r"layer_\d+/mlp/(gate|up)", P(None, MODEL)),  # [D, F]
  (r"layer_\d+/mlp/down", P(MODEL, None)),  # [F, D]
  (r"(layer_\d+/)?(attn/)?\w+_norm/scale", P()),
)

# The same, and each part is split once more, by the residual stream's width,
# over the devices that have sequences of their own. A layer's parts are brought
# together while it runs: less memory for more traffic.
FULLY_SHARDED_LM_RULES: Rules = (
  (r"embedder/embedding", P(MODEL, DATA)),  # [V, D]
  (r"layer_\d+/attn/[qkv]", P(DATA, MODEL, None)),  # [D, N or K, H]
  (r"layer_\d+/attn/o", P(MODEL, None, DATA)),  # [N, H, D]
  (r"layer_\d+/mlp/(gate|up)", P(DATA, MODEL)),  # [D, F]
  (r"layer_\d+/mlp/down", P(MODEL, DATA)),  # [F, D]
  (r"(layer_\d+/)?(attn/)?\w+_norm/scale", P()),
)

# One SAE's training state, latents split (paper, 4.1: Megatron-style): each
# device holds and updates its own latents; the reconstruction is summed over
# devices. Optimizer moments have the paths of their parameters.
SAE_RULES: Rules = (
  (r"(.*/)?(w_enc|w_dec)", P(MODEL, None)),  # [M, D], [M, E]
  (r"(.*/)?(b_enc|(log_)?threshold|last_fired|fired)", P(MODEL)),  # [M]
  (r"(.*/)?(r_mag|b_mag)", P(MODEL)),  # [M]
  (r"(.*/)?(b_dec|w_skip)", P()),  # [E], [D, E]
  (r"(.*/)?(step|count|dense_steps|running_threshold)", P()),
)

# A finished SAE, `sae.Params`: latents last in its encoder.
FOLDED_RULES: Rules = (
  (r"w_enc", P(None, MODEL)),  # [D, M]
  (r"w_dec", P(MODEL, None)),  # [M, E]
  (r"b_enc|threshold", P(MODEL)),  # [M]
  (r"b_dec|w_skip", P()),  # [E], [D, E]
)


def for_lm(fully_sharded: bool) -> Rules:
  """The language model's table."""
  return FULLY_SHARDED_LM_RULES if fully_sharded else LM_RULES


def spec(
  path: str, shape: Sequence[int], mesh: Mesh, rules: Rules = LM_RULES
) -> P:
  """How one parameter is split.

  An axis of the mesh that does not exist, or does not divide the parameter's
  axis (one key-value head on eight devices), leaves that axis whole.

  Args:
    path: the keys joined by slashes.
    shape: of the parameter.
    mesh: the devices.
    rules: the table.

  Returns:
    The `PartitionSpec`, with an entry for every axis of the parameter.

  Raises:
    ValueError: no rule matches the path, or the rule that does is for more
      axes than the parameter has.
  """
  matching = (rule for pattern, rule in rules if re.fullmatch(pattern, path))
  found = next(matching, None)
  if found is None:
    raise ValueError(
      f"parameter {path}: no partition rule matches; add one for it to the"
      " table"
    )
  if len(found) > len(shape):
    raise ValueError(
      f"parameter {path} of shape {tuple(shape)}: its partition rule {found}"
      f" is for {len(found)} axes"
    )
  entries = tuple(found) + (None,) * (len(shape) - len(found))
  return P(
    *(
      _fitting(entry, size, mesh)
      for entry, size in zip(entries, shape, strict=True)
    )
  )


def kept_whole(
  tree: Any, mesh: Mesh, rules: Rules = LM_RULES
) -> dict[str, str]:
  """Which parameters are not split as the rules say, and why.

  Args:
    tree: of arrays or `jax.ShapeDtypeStruct`s.
    mesh: the devices.
    rules: the table.

  Returns:
    From the parameter, layers left out, to a reason: {"attn/k": "8 does not
    divide by 16 ('model')"}.
  """
  found: dict[str, str] = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = _join(path)
    asked = next(rule for key, rule in rules if re.fullmatch(key, name))
    got = spec(name, leaf.shape, mesh, rules)
    for axis, size, entry in zip(asked, leaf.shape, got, strict=False):
      ways = mesh.shape.get(axis, 1)
      if ways > 1 and entry is None:
        found[re.sub(r"layer_\d+/", "", name)] = (
          f"{size} does not divide by {ways} ({axis!r})"
        )
  return found


def _fitting(entry: Any, size: int, mesh: Mesh) -> Any:
  """The entry of a spec, or None where the mesh cannot split the axis so."""
  if entry is None:
    return None
  names = (entry,) if isinstance(entry, str) else tuple(entry)
  names = tuple(name for name in names if name in mesh.shape)
  if not names or size % math.prod(mesh.shape[name] for name in names):
    return None
  return names[0] if len(names) == 1 else names


def shardings(tree: Any, mesh: Mesh, rules: Rules = LM_RULES) -> Any:
  """The sharding of every parameter.

  Args:
    tree: of arrays or `jax.ShapeDtypeStruct`s.
    mesh: the devices.
    rules: the table.

  Returns:
    A tree of `NamedSharding`s of the same structure.

  Raises:
    ValueError: as `spec`.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(
      mesh, spec(_join(path), leaf.shape, mesh, rules)
    ),
    tree,
  )


def shard(tree: Any, mesh: Mesh, rules: Rules = LM_RULES) -> Any:
  """Puts every array of the tree onto the mesh as the rules say."""
  return jax.device_put(tree, shardings(tree, mesh, rules))


def constrain(tree: Any, mesh: Mesh, rules: Rules = LM_RULES) -> Any:
  """Inside a jitted function: the tree, held to the rules' shardings."""
  return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh, rules))


def _join(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")

"""Parameters that know the devices they are on.

A dict like any other, so that whoever runs the model need not know of devices:
`forward` and the losses find the mesh in their parameters, split the sequences
over its "data" axis, and bring together what is split along it (`load`'s
`fully_sharded`) where it is used.

Letters: S sequences, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemmascope_jax.parallel import rules
from gemmascope_jax.parallel.mesh import DATA

_EMBEDDER = "embedder"


@jax.tree_util.register_pytree_with_keys_class
class Params(dict):
  """The tree of parameters; also under `jax.jit`, where the mesh is static.

  Attributes:
    mesh: the devices.
  """

  def __init__(self, tree: Mapping[str, Any], mesh: Mesh):
    super().__init__(tree)
    self.mesh = mesh

  def __or__(self, other: Mapping[str, Any]) -> Params:
    """With some entries replaced, on the same devices."""
    return Params(dict(self) | dict(other), self.mesh)

  def tree_flatten_with_keys(self):
    """The entries in the order of their names, as of a dict."""
    names = tuple(sorted(self))
    key = jax.tree_util.DictKey
    return [(key(name), self[name]) for name in names], (names, self.mesh)

  @classmethod
  def tree_unflatten(cls, about, entries):
    """The inverse."""
    names, mesh = about
    return cls(zip(names, entries, strict=True), mesh)


def ways(params: Mapping[str, Any]) -> int:
  """Into how many parts sequences are split."""
  return params.mesh.shape.get(DATA, 1) if isinstance(params, Params) else 1


def by_sequence(params: Mapping[str, Any], array: Any) -> Any:
  """[S, ...] split over the mesh; as it is if there is none, or S is odd to it.

  Args:
    params: whose mesh it is.
    array: of sequences; None stays None.
  """
  if array is None or not isinstance(params, Params):
    return array
  if array.shape[0] % ways(params):
    return array
  axis = DATA if DATA in params.mesh.shape else None
  sharding = NamedSharding(params.mesh, PartitionSpec(axis))
  return jax.lax.with_sharding_constraint(array, sharding)


def together(params: Mapping[str, Any], table: bool) -> Mapping[str, Any]:
  """Plain parameters, none of which is split along "data" any more.

  The compiler does it where each is used, if it runs under `jax.jit`.

  Args:
    params: of the model, or some of them.
    table: the embedding, too. To look words up, it is better left in parts:
      their few numbers travel instead.
  """
  if not isinstance(params, Params):
    return params
  some = {k: v for k, v in params.items() if table or k != _EMBEDDER}
  return dict(params) | rules.constrain(some, params.mesh)


def embedding(params: Mapping[str, Any]) -> jax.Array:
  """The table [V, D], to multiply with: not split along "data"."""
  if isinstance(params, Params):
    params = rules.constrain({_EMBEDDER: params[_EMBEDDER]}, params.mesh)
  return params[_EMBEDDER]["embedding"]

"""The circuit of one prompt pair: nodes, edges, and how well they hold.

`nodes` and `edges` say what the numbers are. Effects are of patching: negative
where taking the patch prompt's value lowers the metric, so where the clean
prompt's value supports the answer.

Letters: T tokens, n nodes, k edges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy  # its parts are loaded when they are used: stats takes a second

from gemmascope_jax.circuits import edges as edges_
from gemmascope_jax.circuits import nodes as nodes_
from gemmascope_jax.circuits import places as places_
from gemmascope_jax.circuits.edges import ERROR
from gemmascope_jax.circuits.places import Metric
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.gemma import sites
from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.studies.activity import resampling
from gemmascope_jax.studies.estimate import ratio

_ROUNDED = 8  # nodes of a place are looked at by this many


@dataclasses.dataclass(frozen=True)
class Node:
  """A latent, or an error, at one token.

  Attributes:
    site: such as "res.5"; "embed" for the embedding.
    position: of the token.
    latent: its number; -1 for the SAE's error, and for the embedding.
    clean: activation on the clean prompt; None for an error.
    patch: on the patch prompt, or 0 for the zero baseline; None for an error.
    effect: attributed indirect effect, see `nodes`.
    ablated: what the metric really changes by when the node alone is patched;
      None if it was not measured.
  """

  site: str
  position: int
  latent: int
  clean: float | None
  patch: float | None
  effect: float
  ablated: float | None = None

  @property
  def is_error(self) -> bool:
    """Whether it is an error, or the embedding."""
    return self.latent == ERROR


@dataclasses.dataclass(frozen=True)
class Edge:
  """An edge between nodes, by their places in `Circuit.nodes`.

  Attributes:
    source: the earlier node.
    target: the later one; None: the metric.
    weight: see `edges`.
  """

  source: int
  target: int | None
  weight: float


@dataclasses.dataclass(frozen=True, eq=False)
class Circuit:
  """What `attribute` returns.

  Attributes:
    tokens: int32 [T], the clean prompt.
    patch_tokens: int32 [T]; None: the zero baseline.
    metric: what is explained.
    steps: of integrated gradients; 0: the gradient at the clean run.
    value: the metric on the clean prompt.
    patch_value: on the patch prompt; None for the zero baseline.
    widths: number of latents of each site, in the model's order.
    totals: of each place, the summed effects of its latents, of its errors
      and of both, whether they are among the nodes or not.
    nodes: n, largest effect first.
    edges: k, largest weight first.
    agreement: attributed against real effects, see `agreement`; None if these
      were not measured.
  """

  tokens: np.ndarray
  patch_tokens: np.ndarray | None
  metric: Metric
  steps: int
  value: float
  patch_value: float | None
  widths: dict[str, int]
  totals: dict[str, dict[str, float]]
  nodes: list[Node]
  edges: list[Edge]
  agreement: dict[str, Any] | None = None


def attribute(
  lm,
  saes: Mapping[str, SAE],
  clean: np.ndarray,
  patch: np.ndarray | None,
  metric: Metric,
  *,
  nodes: int = 60,
  edges: int = 300,
  steps: int = 0,
  ablate: bool = True,
  policy: TokenPolicy | None = None,
) -> Circuit:
  """The circuit behind a metric at a prompt's last token.

  Memory grows with the nodes that are kept and not with the SAEs' widths: a row
  of latents for one token at a time, and J x K weights for a pair of sites.

  Args:
    lm: a `Gemma` with all its layers.
    saes: by site, such as {"res.5": sae, "res.12": sae}.
    clean: int32 [T], the prompt.
    patch: int32 [T], the prompt that nodes take their other values from; None:
      they are set to zero.
    metric: the logit, or difference of logits, to explain.
    nodes: latents, errors and embedded tokens to keep, over all sites: those of
      the largest effects.
    edges: to keep: those of the largest weights; 0: none are looked for.
    steps: of integrated gradients for the nodes' effects; 0: none.
    ablate: whether each node is patched alone to see its real effect, a pass
      from its site on each.
    policy: where the SAEs belong; None: the tokenizer's.

  Returns:
    The circuit.

  Raises:
    ValueError: prompts of different lengths, a token that the model lacks, an
      SAE of another site or model, or nothing to keep.
  """
  policy = TokenPolicy.of(lm.tokenizer) if policy is None else policy
  clean, patch = _checked(lm, clean, patch, metric, nodes, edges, steps)
  places_.check(lm, saes, policy)
  places = places_.make(lm, saes, clean, patch, policy)
  tokens = jnp.asarray(clean)
  metric = dataclasses.replace(
    metric,
    answer=jnp.asarray(metric.answer),
    wrong=None if metric.wrong is None else jnp.asarray(metric.wrong),
  )
  run = (lm.config, lm.params, tokens)
  found = {}
  slopes = nodes_.slopes(*run, places, metric, steps)
  for place, slope in zip(places, slopes, strict=True):
    most = 0 if place.sae is None else min(nodes, place.sae.width)
    each = nodes_.effects(place.local(), slope, keep=most)
    found[place.name] = nodes_.Effects(*map(np.asarray, each))
  kept = _largest(found, nodes)
  moves = {place.name: _moves(place, found, kept) for place in places}
  if ablate:
    kept = _ablated(run, places, metric, kept, moves)
  by_place = {
    place.name: [i for i, node in enumerate(kept) if node.site == place.name]
    for place in places
  }
  value = lambda ids: float(
    nodes_.value(lm.config, lm.params, jnp.asarray(ids), metric)
  )
  return Circuit(
    tokens=clean,
    patch_tokens=patch,
    metric=dataclasses.replace(
      metric,
      answer=int(metric.answer),
      wrong=None if metric.wrong is None else int(metric.wrong),
    ),
    steps=steps,
    value=value(clean),
    patch_value=None if patch is None else value(patch),
    widths={p.name: p.sae.width for p in places if p.sae is not None},
    totals={name: _totals(each) for name, each in found.items()},
    nodes=kept,
    edges=_edges(run, places, metric, found, kept, by_place, moves, edges),
    agreement=agreement(kept) if ablate else None,
  )


def _checked(lm, clean, patch, metric, nodes, edges, steps):
  if nodes < 1 or min(edges, steps) < 0:
    raise ValueError(
      f"nodes {nodes}, edges {edges}, steps {steps}: expected at least one node"
      " and no negative number"
    )
  prompts = [clean] if patch is None else [clean, patch]
  prompts = [np.asarray(ids, np.int32) for ids in prompts]
  if any(ids.ndim != 1 or not len(ids) for ids in prompts):
    shapes = ", ".join(str(ids.shape) for ids in prompts)
    raise ValueError(f"prompts of shapes {shapes}: expected [T] each, T > 0")
  if len({len(ids) for ids in prompts}) > 1:
    raise ValueError(
      f"the clean prompt has {len(prompts[0])} tokens, the patch prompt"
      f" {len(prompts[1])}: expected as many, token against token; reword one"
    )
  asked = [metric.answer] + ([] if metric.wrong is None else [metric.wrong])
  for token in [*np.concatenate(prompts), *asked]:
    if not 0 <= int(token) < lm.config.vocab_size:
      raise ValueError(
        f"token {int(token)}: {lm.config.name} has tokens"
        f" 0..{lm.config.vocab_size - 1}"
      )
  return prompts[0], (None if patch is None else prompts[1])


def _largest(found, count: int) -> list[Node]:
  """The nodes of the largest effects; ties go to the earlier one."""
  every = []
  for site, each in found.items():
    for t, c in zip(*np.nonzero(each.effect), strict=True):
      before = float(each.clean[t, c])
      after = before + float(each.change[t, c])
      every.append(
        Node(
          site=site,
          position=int(t),
          latent=int(each.latents[t, c]),
          clean=before,
          patch=after,
          effect=float(each.effect[t, c]),
        )
      )
    every += [
      Node(site, int(t), ERROR, None, None, float(each.error[t]))
      for t in np.flatnonzero(each.error)
    ]
  bad = [node for node in every if not np.isfinite(node.effect)]
  if bad:
    raise FloatingPointError(
      f"the effect of {bad[0].site} at token {bad[0].position} is"
      f" {bad[0].effect}: the model or the SAE gives numbers that are not finite"
    )
  every.sort(key=lambda node: -abs(node.effect))
  return every[:count]


def _moves(place, found, kept):
  """(what each node's change adds to x [J, D], tokens [J]) at a place.

  J is the number of nodes rounded up, so that other prompts compile nothing
  new; nodes that do not exist change nothing.
  """
  own = [node for node in kept if node.site == place.name]
  each = found[place.name]
  size = -(-len(own) // _ROUNDED) * _ROUNDED
  positions = np.zeros(size, np.int32)
  positions[: len(own)] = [node.position for node in own]
  moves = np.zeros((size, place.x.shape[1]), np.float32)
  w_dec = None if place.sae is None else np.asarray(place.sae.params.w_dec)
  for row, node in enumerate(own):
    if node.is_error:
      moves[row] = each.error_change[node.position]
    else:
      moves[row] = (node.patch - node.clean) * w_dec[node.latent]
  return jnp.asarray(moves), jnp.asarray(positions)


def _ablated(run, places, metric, kept, moves) -> list[Node]:
  real = nodes_.ablated(
    *run, places, metric, *zip(*(moves[p.name] for p in places), strict=True)
  )
  own = {
    place.name: iter(np.asarray(values))
    for place, values in zip(places, real, strict=True)
  }
  return [
    dataclasses.replace(node, ablated=float(next(own[node.site])))
    for node in kept
  ]


def _edges(run, places, metric, found, kept, by_place, moves, count):
  if not count:
    return []
  config, params, tokens = run
  later = {
    place.name: edges_.cotangents(
      place.local(),
      jnp.asarray(found[place.name].slope),
      moves[place.name][1],
      _numbers(kept, by_place[place.name], len(moves[place.name][1])),
    )
    for place in places
    if place.sae is not None and by_place[place.name]
  }
  every = []
  for number, place in enumerate(places):
    sources, frozen = by_place[place.name], {}
    if not sources:
      continue
    here = (params, tokens, place.bare())
    for target in places[number + 1 :]:
      if target.name in later:
        weights = edges_.between(
          config,
          target.name,
          *here,
          dict(frozen),
          later[target.name],
          moves[target.name][1],
          *moves[place.name],
        )
        every += _listed(weights, sources, by_place[target.name])
      frozen[target.name] = target.x
      if sites.parse(target.name).kind == "res":
        break  # nothing goes past a stream that is held
    else:
      weights = edges_.straight(
        config, *here, frozen, metric, *moves[place.name]
      )
      every += _listed(weights[None], sources, [None])
  every.sort(key=lambda edge: -abs(edge.weight))
  return every[:count]


def _numbers(kept, own, size: int):
  """int32 [size]: the latents of some nodes; errors where there is none."""
  numbers = np.full(size, ERROR, np.int32)
  numbers[: len(own)] = [kept[i].latent for i in own]
  return jnp.asarray(numbers)


def _listed(weights, sources, targets) -> list[Edge]:
  weights = np.asarray(weights)[: len(targets), : len(sources)]
  return [
    Edge(sources[j], targets[k], float(weights[k, j]))
    for k, j in zip(*np.nonzero(weights), strict=True)
  ]


def _totals(each: nodes_.Effects) -> dict[str, float]:
  latents = float(np.sum(each.total, dtype=np.float64))
  error = float(np.sum(each.error, dtype=np.float64))
  return {"latents": latents, "error": error, "all": latents + error}


def agreement(kept: list[Node]) -> dict[str, Any]:
  """How well attributed effects are those of really patching each node.

  Args:
    kept: nodes with both.

  Returns:
    JSON-ready {"latents", "errors" (with the embedding)}, each {"nodes": n,
    "pearson", "spearman" (of effects), "sign": share of nodes of the right
    sign}, with standard errors by drawing nodes again; None for fewer than
    three nodes. They are apart, as an error's change is large and a first order
    says least about it.
  """
  return {
    "latents": _agreement([node for node in kept if not node.is_error]),
    "errors": _agreement([node for node in kept if node.is_error]),
  }


def _agreement(kept: list[Node]) -> dict[str, Any] | None:
  if len(kept) < 3:
    return None
  said = np.array([node.effect for node in kept], np.float64)
  real = np.array([node.ablated for node in kept], np.float64)

  def estimate(a, b) -> dict[str, Any]:
    def correlation(weights):
      w = weights / weights.sum()
      a0, b0 = a - w @ a, b - w @ b
      size = np.sqrt((w @ a0**2) * (w @ b0**2))
      return (w @ (a0 * b0)) / size if size > 0 else np.nan

    return resampling.estimate(correlation, len(a), len(a)).to_dict()

  ranks = scipy.stats.rankdata
  same = (np.sign(said) == np.sign(real)).astype(np.float64)
  return {
    "nodes": len(kept),
    "pearson": _finite(estimate(said, real)),
    "spearman": _finite(estimate(ranks(said), ranks(real))),
    "sign": ratio(same, np.ones(len(same))).to_dict(),
  }


def _finite(value: dict[str, Any]) -> dict[str, Any]:
  """JSON has no NaN: a correlation of constants is None."""
  return value if np.isfinite(value["mean"]) else value | {"mean": None}

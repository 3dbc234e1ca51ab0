"""A circuit as the JSON that viewers of attribution graphs read.

The layout is that of circuit-tracer's local viewer and of Neuronpedia's upload:
`metadata`, `qParams`, `nodes` and `links`. What those viewers expect and an SAE
circuit has to be fitted to:

* a node's id is LAYER_FEATURE_TOKEN, three whole numbers (E and the token's id
  for an embedded token), and `feature` pairs layer and feature into one number
  by Cantor's pairing. They know one dictionary a layer; where a layer has SAEs
  at several sites, features of the later ones are shifted by the widths of
  those before, and `metadata.sites` says by how much. The error of a layer's
  first site is feature -1, of its second -2, and so on.
* `feature_type` is one of four names. Latents are given the one that they know
  for latents, "cross layer transcoder", errors "mlp reconstruction error".
* a link's weight, in viewers, is what the source contributes to the target:
  positive where it supports the answer. So it is our weight with its sign
  turned, as ours are of taking the clean value away.
* `influence` is what their pruning slider reads: nodes are taken by descending
  size of their effect, and this is the share of all sizes up to a node. The
  slider is there only if `metadata.node_threshold` is a number: 1, all nodes.
* circuit-tracer's viewer serves a folder: SLUG.json of each graph, and
  graph-metadata.json with the metadata of all; `publish` keeps both.

Beside these, nodes have `site`, `effect` (of patching, our sign), `ablated` and
`patch_activation`, which viewers ignore.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from gemmascope_jax import __version__, artifacts
from gemmascope_jax.circuits.places import EMBED
from gemmascope_jax.gemma import sites as sites_

LATENT, ERROR = "cross layer transcoder", "mlp reconstruction error"
EMBEDDED, LOGIT = "embedding", "logit"
INDEX = "graph-metadata.json"
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]*")


def graph(
  result: dict[str, Any], slug: str, scan: str | None = None
) -> dict[str, Any]:
  """The graph of a circuit's result.

  Args:
    result: of `circuits.result`.
    slug: the graph's name: lower-case letters, digits and hyphens.
    scan: what viewers call the model, such as "gemma-2-2b"; None: its name.

  Returns:
    JSON-ready; see the module.

  Raises:
    ValueError: a slug that is none.
  """
  check_slug(slug)
  layout = _layout(result)
  nodes = [_node(result, node, layout) for node in result["nodes"]]
  metric = _metric(result)
  sizes = np.abs([node["effect"] for node in result["nodes"]])
  order = np.argsort(-sizes, kind="stable")
  share = np.cumsum(sizes[order]) / max(sizes.sum(), 1e-30)
  for index, influence in zip(order, share, strict=True):
    nodes[index]["influence"] = min(float(influence), 1.0)
  ids = [node["node_id"] for node in nodes]
  links = [
    {
      "source": ids[edge["source"]],
      "target": (
        metric["node_id"] if edge["target"] is None else ids[edge["target"]]
      ),
      "weight": -edge["weight"],
    }
    for edge in result["edges"]
  ]
  found = {
    "metadata": {
      "slug": slug,
      "scan": scan or result["model"]["name"],
      "transcoder_list": [],
      "prompt_tokens": result["tokens"],
      "prompt": "".join(result["tokens"]),
      "node_threshold": 1.0,
      "schema_version": 1,
      "info": {"generator": {"name": "gemmascope_jax", "version": __version__}},
      "sites": layout,
      "weights": (
        "what the clean value contributes, against the patched one, to"
        f" {metric['clerp']}"
      ),
    },
    "qParams": {
      "pinnedIds": [],
      "supernodes": [],
      "linkType": "both",
      "clickedId": "",
      "sg_pos": "",
    },
    "nodes": [*nodes, metric],
    "links": links,
  }
  validate(found)
  return found


def check_slug(slug: str) -> None:
  """Refuses what can't be a graph's name, and so a file's.

  Raises:
    ValueError: names it.
  """
  if not _SLUG.fullmatch(slug) or f"{slug}.json" == INDEX:
    raise ValueError(
      f"slug {slug!r}: expected lower-case letters, digits and hyphens, such as"
      f" 'girls-are'; {INDEX} is the list of all graphs"
    )


def _layout(result) -> list[dict[str, Any]]:
  """Where the features of each site begin within its layer."""
  found, begin, number = [], {}, {}
  for each in result["sites"]:
    if each["site"] == EMBED:
      continue
    layer = sites_.parse(each["site"]).layer
    number[layer] = number.get(layer, 0) + 1
    found.append(
      {
        "site": each["site"],
        "layer": layer,
        "first_feature": begin.get(layer, 0),
        "width": each["width"],
        "error_feature": -number[layer],
      }
    )
    begin[layer] = begin.get(layer, 0) + each["width"]
  return found


def _node(result, node, layout) -> dict[str, Any]:
  position = node["position"]
  extra = {
    "site": node["site"],
    "effect": node["effect"],
    "ablated": node["ablated"],
    "patch_activation": node["patch"],
  }
  if node["site"] == EMBED:
    token = result["token_ids"][position]
    name = f"E_{token}_{position}"
    seen = (name, f"E_{token}-{position}", position, "E", EMBEDDED)
    label = result["tokens"][position]
    return _fields(*seen, position, label, node["clean"]) | extra
  (place,) = [each for each in layout if each["site"] == node["site"]]
  layer = place["layer"]
  if node["latent"] is None:
    feature, kind = place["error_feature"], ERROR
    number, label = feature, f"{node['site']} error"
    page = f"{layer}_{feature}-{position}"
  else:
    feature, kind = place["first_feature"] + node["latent"], LATENT
    both = layer + feature
    number = both * (both + 1) // 2 + feature
    label = f"{node['site']} {node['latent']}"
    if node["promotes"]:
      label += ": " + ", ".join(repr(word) for word in node["promotes"][:3])
    page = f"{layer}_{feature}-0"
  name = f"{layer}_{feature}_{position}"
  seen = (name, page, number, str(layer), kind)
  return _fields(*seen, position, label, node["clean"]) | extra


def _metric(result) -> dict[str, Any]:
  layer = str(result["model"]["layers"] + 1)
  position = len(result["tokens"]) - 1
  answer = result["answer"]
  # Viewers read the token between the first quotes, and p after "(p=".
  label = f'Output "{answer["piece"]}"'
  if result["wrong"] is not None:
    label += f' less "{result["wrong"]["piece"]}"'
  label += f" (p={result['probability']:.3f})"
  name = f"{layer}_{answer['id']}_{position}"
  page = f"L_{answer['id']}-{position}"
  seen = (name, page, answer["id"], layer, LOGIT)
  return _fields(*seen, position, label, None) | {
    "token_prob": result["probability"],
    "is_target_logit": True,
  }


def _fields(name, page, feature, layer, kind, position, label, activation):
  return {
    "node_id": name,
    "jsNodeId": page,
    "feature": feature,
    "layer": layer,
    "feature_type": kind,
    "ctx_idx": position,
    "reverse_ctx_idx": 0,
    "run_idx": 0,
    "token_prob": 0.0,
    "is_target_logit": False,
    "clerp": label,
    "influence": None,
    "activation": activation,
  }


_TYPES = {
  "node_id": str,
  "jsNodeId": str,
  "feature": int,
  "layer": str,
  "feature_type": str,
  "ctx_idx": int,
  "reverse_ctx_idx": int,
  "run_idx": int,
  "token_prob": float,
  "is_target_logit": bool,
  "clerp": str,
}
_ID = re.compile(r"(E|\d+)_(-?\d+)_(\d+)")
_PROBABILITY = re.compile(r"\(p=[01]\.\d+\)")


def validate(found: dict[str, Any]) -> None:
  """Refuses what a viewer would not read, or would draw wrongly.

  Raises:
    ValueError: a part or field that is missing or of another type, an id that
      is none, is given twice or does not fit its node, a link to nowhere or
      backwards, no logit to explain; names it.
  """
  for part in ("metadata", "qParams", "nodes", "links"):
    if part not in found:
      raise ValueError(f"the graph lacks {part!r}")
  tokens = found["metadata"].get("prompt_tokens")
  if not isinstance(tokens, list) or not tokens:
    raise ValueError("metadata.prompt_tokens: expected a list of strings")
  threshold = found["metadata"].get("node_threshold")
  if not _is_number(threshold):
    raise ValueError(
      f"metadata.node_threshold is {threshold!r}: expected a number"
    )
  nodes = {}
  for node in found["nodes"]:
    name = node.get("node_id")
    for field, kind in _TYPES.items():
      if type(node.get(field)) is not kind:
        raise ValueError(
          f"node {name!r}: {field} is {node.get(field)!r}; expected"
          f" {kind.__name__}"
        )
    for field in ("influence", "activation"):
      value = node.get(field)
      if value is not None and not _is_number(value):
        raise ValueError(
          f"node {name!r}: {field} is {value!r}; expected a number or null"
        )
    match = _ID.fullmatch(name)
    if (
      match is None
      or match[1] != node["layer"]
      or int(match[3]) != node["ctx_idx"]
      or not 0 <= node["ctx_idx"] < len(tokens)
      or node["feature_type"] not in (LATENT, ERROR, EMBEDDED, LOGIT)
    ):
      raise ValueError(
        f"node {name!r}: does not fit its layer {node['layer']!r}, ctx_idx"
        f" {node['ctx_idx']} or feature_type {node['feature_type']!r}"
      )
    if name in nodes:
      raise ValueError(f"node {name!r} is there twice")
    nodes[name] = node
  logits = [n for n in nodes.values() if n["feature_type"] == LOGIT]
  if len(logits) != 1 or not _PROBABILITY.search(logits[0]["clerp"]):
    raise ValueError(
      "expected one node of type 'logit', the metric, with '(p=0.123)' in its"
      " clerp"
    )
  depth = lambda node: -1 if node["layer"] == "E" else int(node["layer"])
  for link in found["links"]:
    ends = [nodes.get(link["source"]), nodes.get(link["target"])]
    if None in ends or not _is_number(link["weight"]):
      raise ValueError(f"link {link}: it has no such nodes, or no weight")
    if depth(ends[0]) > depth(ends[1]):
      raise ValueError(f"link {link}: it runs backwards")


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and bool(np.isfinite(value))


def publish(folder: str | os.PathLike, found: dict[str, Any]) -> pathlib.Path:
  """Adds a graph to a folder that circuit-tracer's viewer can serve.

  Args:
    folder: made if it is not there; a graph of the same slug is replaced.
    found: of `graph`.

  Returns:
    The graph's file, FOLDER/SLUG.json.

  Raises:
    ValueError: no graph, see `validate`, or a graph-metadata.json that is none;
      nothing is written then.
  """
  validate(found)
  folder = pathlib.Path(folder)
  slug, index = found["metadata"]["slug"], folder / INDEX
  listed = artifacts.read_json(index) if index.exists() else {"graphs": []}
  try:
    others = [each for each in listed["graphs"] if each["slug"] != slug]
  except (TypeError, KeyError) as error:
    raise ValueError(
      f"{index} does not list graphs, as {{'graphs': [{{'slug': ...}}]}}: move"
      " it away, or choose another folder"
    ) from error
  path = folder / f"{slug}.json"
  write(path, found)
  graphs = [*others, found["metadata"]]
  artifacts.write_json(index, listed | {"graphs": graphs})
  return path


def write(path: str | os.PathLike, found: dict[str, Any]) -> None:
  """Writes a graph to a file; refuses one that is none, see `validate`."""
  validate(found)
  text = json.dumps(found, ensure_ascii=False, indent=1, allow_nan=False)
  artifacts.write_text(path, text + "\n")

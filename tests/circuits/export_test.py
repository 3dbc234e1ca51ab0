"""Graphs for viewers: what they need is there, and links are our weights."""

import copy
import json
import os
import pathlib
import subprocess

import pytest

from gemmascope_jax import artifacts
from gemmascope_jax.circuits import export

_NODE = {"clean": None, "patch": None, "ablated": None, "promotes": []}


def result():
  """Of a made-up circuit with two sites in one layer."""
  node = lambda site, position, latent, effect, **more: (
    _NODE
    | {"site": site, "position": position, "latent": latent, "effect": effect}
    | more
  )
  site = lambda name, width: {
    "site": name,
    "width": width,
    "latents": -1.0,
    "error": 0.5,
    "all": -0.5,
  }
  return {
    "study": "circuit",
    "format": 1,
    "model": {"label": "tiny", "name": "gemma-tiny", "layers": 3},
    "tokens": ["<bos>", " girls", " near"],
    "token_ids": [2, 40, 41],
    "patch_tokens": ["<bos>", " girl", " near"],
    "answer": {"id": 7, "piece": " are"},
    "wrong": {"id": 8, "piece": ' "is'},
    "probability": 0.25,
    "softcap": False,
    "value": 2.0,
    "patch_value": -1.0,
    "steps": 0,
    "sites": [site("embed", None), site("att.1", 10), site("res.1", 20)],
    "nodes": [
      node("res.1", 2, 4, -2.0, clean=3.0, patch=0.0, promotes=[" were"]),
      node("att.1", 2, 4, -1.0, clean=1.0, patch=0.5, ablated=-0.9),
      node("res.1", 2, None, 0.6),
      node("att.1", 1, None, 0.25),
      node("embed", 1, None, -0.15),
    ],
    "edges": [
      {"source": 0, "target": None, "weight": -2.0},
      {"source": 1, "target": 0, "weight": -0.75},
      {"source": 4, "target": 3, "weight": 0.5},
    ],
    "agreement": None,
  }


def test_nodes_are_named_as_viewers_read_them():
  graph = export.graph(result(), "girls-are")
  names = [node["node_id"] for node in graph["nodes"]]
  assert names == ["1_14_2", "1_4_2", "1_-2_2", "1_-1_1", "E_40_1", "4_7_2"]
  latent, att, error, *_, embedded, logit = graph["nodes"]
  assert latent["feature"] == 15 * 16 // 2 + 14 and latent["layer"] == "1"
  assert latent["activation"] == 3 and latent["site"] == "res.1"
  assert latent["clerp"] == "res.1 4: ' were'"
  kinds = [node["feature_type"] for node in graph["nodes"]]
  assert kinds == [
    "cross layer transcoder",
    "cross layer transcoder",
    "mlp reconstruction error",
    "mlp reconstruction error",
    "embedding",
    "logit",
  ]
  pages = [node["jsNodeId"] for node in graph["nodes"]]
  assert len(set(pages)) == len(pages) and pages[0] == "1_14-0"
  assert embedded["layer"] == "E" and att["ablated"] == -0.9
  assert logit["is_target_logit"] and logit["token_prob"] == 0.25
  # The viewer's own way to the number: clerp.split("(p=")[1].split(")")[0].
  assert logit["clerp"].split("(p=")[1].split(")")[0] == "0.250"
  assert logit["clerp"].split('"')[1] == " are"
  layout = graph["metadata"]["sites"]
  assert [(each["site"], each["first_feature"]) for each in layout] == [
    ("att.1", 0),
    ("res.1", 10),
  ]


def test_links_support_where_patching_takes_away():
  graph = export.graph(result(), "girls-are", scan="gemma-2-2b")
  assert graph["links"] == [
    {"source": "1_14_2", "target": "4_7_2", "weight": 2.0},
    {"source": "1_4_2", "target": "1_14_2", "weight": 0.75},
    {"source": "E_40_1", "target": "1_-1_1", "weight": -0.5},
  ]
  shares = [node["influence"] for node in graph["nodes"]]
  assert shares[:5] == pytest.approx([0.5, 0.75, 0.9, 0.9625, 1])
  metadata = graph["metadata"]
  assert metadata["scan"] == "gemma-2-2b" and metadata["slug"] == "girls-are"
  assert metadata["prompt"] == "<bos> girls near"
  assert graph["qParams"]["linkType"] == "both"


def test_a_folder_lists_its_graphs(tmp_path):
  graph = export.graph(result(), "girls-are")
  path = export.publish(tmp_path, graph)
  assert path == tmp_path / "girls-are.json"
  assert artifacts.read_json(path) == graph
  index = tmp_path / "graph-metadata.json"
  assert artifacts.read_json(index) == {"graphs": [graph["metadata"]]}
  # Others stay, one of the same slug is replaced.
  other = export.graph(result(), "second")
  export.publish(tmp_path, other)
  again = export.graph(result(), "girls-are", scan="gemma-2-2b")
  export.publish(tmp_path, again)
  expected = [other["metadata"], again["metadata"]]
  assert artifacts.read_json(index)["graphs"] == expected
  assert artifacts.read_json(path)["metadata"]["scan"] == "gemma-2-2b"


@pytest.mark.parametrize("text", ["[]", "{}", '{"graphs": 3}', "{"])
def test_a_list_that_is_none_is_left_alone(text, tmp_path):
  index = tmp_path / "graph-metadata.json"
  index.write_text(text)
  with pytest.raises(ValueError, match="graph-metadata.json"):
    export.publish(tmp_path, export.graph(result(), "girls-are"))
  assert [path.name for path in tmp_path.iterdir()] == [index.name]
  assert index.read_text() == text


def _broken(change):
  graph = copy.deepcopy(export.graph(result(), "girls-are"))
  change(graph)
  return graph


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda g: g.pop("links"), "lacks 'links'"),
    (lambda g: g["metadata"].pop("prompt_tokens"), "prompt_tokens"),
    (
      lambda g: g["metadata"].update(node_threshold=None),
      "node_threshold is None: expected a number",
    ),
    (lambda g: g["nodes"][0].update(influence="1"), "influence is '1'"),
    (
      lambda g: g["nodes"][0].update(activation=float("inf")),
      "activation is inf",
    ),
    (lambda g: g["nodes"][0].pop("clerp"), "clerp is None; expected str"),
    (lambda g: g["nodes"][0].update(feature=1.5), "feature is 1.5"),
    (lambda g: g["nodes"][0].update(layer="2"), "does not fit its layer '2'"),
    (lambda g: g["nodes"][0].update(ctx_idx=1), "ctx_idx 1"),
    (lambda g: g["nodes"][0].update(feature_type="sae"), "feature_type 'sae'"),
    (lambda g: g["nodes"].append(g["nodes"][0]), "'1_14_2' is there twice"),
    (lambda g: g["nodes"].pop(), "one node of type 'logit'"),
    (lambda g: g["nodes"][-1].update(clerp="are"), r"with '\(p=0.123\)'"),
    (lambda g: g["nodes"].pop(0), "it has no such nodes"),
    (lambda g: g["links"][0].update(weight=float("nan")), "or no weight"),
    (
      lambda g: g["links"][0].update(source="4_7_2", target="1_4_2"),
      "runs backwards",
    ),
  ],
)
def test_what_viewers_would_not_read_is_refused(change, message, tmp_path):
  graph = _broken(change)
  with pytest.raises(ValueError, match=message):
    export.write(tmp_path / "graph.json", graph)
  assert not (tmp_path / "graph.json").exists()


@pytest.mark.parametrize("slug", ["Girls are", "", "a/b", "graph-metadata"])
def test_a_slug_is_a_file_name(slug):
  with pytest.raises(ValueError, match=f"slug '{slug}'"):
    export.graph(result(), slug)


def test_circuit_tracer_reads_it(tmp_path):
  """The viewer's own model of its files; it needs no language model."""
  peers = os.environ.get("PEERS_PYTHON")
  if not peers:
    pytest.skip("PEERS_PYTHON names no Python with circuit-tracer")
  # The file alone: importing the package would import torch and more.
  script = """
import importlib.util, json, pathlib, sys
spec = importlib.util.find_spec("circuit_tracer")
if spec is None:
  sys.exit(77)
path = pathlib.Path(spec.origin).parent / "frontend" / "graph_models.py"
spec = importlib.util.spec_from_file_location("graph_models", path)
models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(models)
text = pathlib.Path(sys.argv[1]).read_text()
print(models.Model.model_validate_json(text).model_dump_json())
"""
  graph = export.graph(result(), "girls-are")
  export.write(tmp_path / "graph.json", graph)
  done = subprocess.run(
    [pathlib.Path(peers), "-c", script, tmp_path / "graph.json"],
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode == 77:
    pytest.skip(f"{peers} has no circuit-tracer")
  assert done.returncode == 0, done.stderr
  back = json.loads(done.stdout)
  assert back["links"] == graph["links"]
  for one, other in zip(back["nodes"], graph["nodes"], strict=True):
    assert one.items() <= other.items()

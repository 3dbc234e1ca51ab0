"""Names of Gemma Scope's releases, and the catalogue of the first."""

import dataclasses
import importlib.resources
import itertools
import json
import re

import pytest

from gemmascope_jax.gemma.config import PRESETS
from gemmascope_jax.releases import catalogue, names
from gemmascope_jax.releases.names import Name
from gemmascope_jax.sae.sae import SAEConfig

ALL = [name for repo in catalogue.repos() for name in catalogue.find(repo)]


def test_the_catalogue_has_every_sae_of_the_list():
  counts = {repo: len(catalogue.find(repo)) for repo in catalogue.repos()}
  assert counts == {
    "google/gemma-scope-2b-pt-res": 316,
    "google/gemma-scope-2b-pt-mlp": 260,
    "google/gemma-scope-2b-pt-att": 260,
    "google/gemma-scope-2b-pt-transcoders": 26,
    "google/gemma-scope-9b-pt-res": 536,
    "google/gemma-scope-9b-pt-mlp": 492,
    "google/gemma-scope-9b-pt-att": 492,
    "google/gemma-scope-9b-it-res": 30,
    "google/gemma-scope-27b-pt-res": 18,
  }
  assert len(set(ALL)) == len(ALL) == 2430


def test_every_name_reads_back():
  for name in ALL:
    assert names.parse(str(name)) == name
    assert name.model in PRESETS
    found = names.in_path(f"/somewhere/{name}/params.npz")
    assert found == name
  cache = str(ALL[7]).replace("google/", "models--google--").split("/", 1)
  path = f"/home/x/hub/{cache[0]}/snapshots/{'a' * 40}/{cache[1]}"
  assert names.in_path(path) == ALL[7]
  assert names.in_path("/data/google/gemma-scope-2b-pt-res/other") is None


def test_what_names_mean():
  name = names.parse(
    "google/gemma-scope-9b-it-res/layer_20/width_16k/average_l0_91"
  )
  assert (name.model, name.site, name.kind) == (
    "gemma-2-9b-it",
    "res.20",
    "sae",
  )
  name = names.parse(
    "google/gemma-scope-2b-pt-transcoders/layer_4/width_16k/average_l0_88"
  )
  assert (name.site, name.target_site) == ("mlp_in.4", "mlp.4")
  name = names.parse(
    "google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"
  )
  assert name.site == "embedding"


# (address, site, target site, kind) of Gemma Scope 2.
SECOND = [
  ("resid_post/layer_13_width_16k_l0_medium", "res.13", None, "sae"),
  ("resid_post/layer_13_width_65k_l0_medium_seed_1", "res.13", None, "sae"),
  ("resid_post_all/layer_0_width_262k_l0_small", "res.0", None, "sae"),
  ("attn_out/layer_22_width_1m_l0_big", "att.22", None, "sae"),
  ("mlp_out_all/layer_3_width_16k_l0_big", "mlp.3", None, "sae"),
  (
    *("transcoder/layer_7_width_16k_l0_big", "mlp_in_gain.7", "mlp.7"),
    "transcoder",
  ),
  (
    *("transcoder_all/layer_7_width_262k_l0_small_affine", "mlp_in_gain.7"),
    *("mlp.7", "transcoder"),
  ),
  (
    "crosscoder/layer_7_13_17_22_width_524k_l0_medium",
    *("res.7+res.13+res.17+res.22", None, "crosscoder"),
  ),
  ("clt/width_262k_l0_big_affine", None, None, "clt"),
]


@pytest.mark.parametrize(("folder", "site", "target", "kind"), SECOND)
@pytest.mark.parametrize("model", ["1b-pt", "270m-it"])
def test_names_of_gemma_scope_2(folder, site, target, kind, model):
  text = f"google/gemma-scope-2-{model}/{folder}"
  name = names.parse(text)
  assert str(name) == text
  assert (name.site, name.target_site, name.kind) == (site, target, kind)
  assert name.affine == text.endswith("affine")
  assert name.seed == (1 if "seed" in text else None)
  assert name.model == f"gemma-3-{model.removesuffix('-pt')}"
  assert names.in_path(f"/x/{text}/params.safetensors") == name


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("google/gemma-2-2b", "no repository of Gemma Scope"),
    ("google/gemma-scope-3b-pt-res/layer_1/width_16k/average_l0_9", "no repo"),
    ("google/gemma-scope-2b-pt-res/layer_01/width_16k/average_l0_9", "layer_L"),
    ("google/gemma-scope-2b-pt-res/layer_1/width_17k/average_l0_9", "W one of"),
    ("google/gemma-scope-2b-pt-res/layer_1/width_16k", "average_l0_N"),
    ("google/gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_9/..", "layer"),
    (
      "google/gemma-scope-2-1b-pt/resid_post/layer_1_2_width_16k_l0_big",
      "GROU",
    ),
    (
      "google/gemma-scope-2-1b-pt/clt/layer_1_width_262k_l0_big",
      "none for clt",
    ),
    ("google/gemma-scope-2-1b-pt/resid_post/layer_1_width_16k_l0_60", "LEVEL"),
  ],
)
def test_what_is_no_name_is_said(text, says):
  with pytest.raises(ValueError, match=says):
    names.parse(text)


def test_what_is_marked_is_canonical():
  """And without a mark, nearest 100; of the marked ones, no other is nearer."""
  text = importlib.resources.files("gemmascope_jax.releases")
  text = text.joinpath("gemma_scope_1.txt").read_text()
  marked = ties = 0
  for repo, line in _lines(text):
    layer, _, rest = line.partition(": ")
    for width, l0s in re.findall(r"(\d+[km])\[([\d* ]+)\]", rest):
      for l0 in l0s.split():
        name = names.parse(
          f"{repo}/layer_{layer}/width_{width}/average_l0_{l0.rstrip('*')}"
          if layer != "emb"
          else f"{repo}/embedding/width_{width}/average_l0_{l0.rstrip('*')}"
        )
        if "*" in l0s:
          assert catalogue.is_canonical(name) == l0.endswith("*"), name
          marked += l0.endswith("*")
        if l0.endswith("*"):
          others = catalogue.find(repo, *name.layers, width)
          nearest = catalogue.nearest(others).l0
          assert abs(nearest - 100) == abs(name.l0 - 100)
          ties += nearest != name.l0
  assert (marked, ties) == (429, 1)


def _lines(text):
  repo = None
  for line in text.splitlines():
    if line.startswith("google/"):
      repo = line
    elif line and not line.startswith("#"):
      yield repo, line


def test_nearest_and_held():
  there = catalogue.find("google/gemma-scope-2b-pt-res", 12, "16k")
  assert [name.l0 for name in there] == [22, 41, 82, 176, 445]
  assert catalogue.nearest(there, 50).l0 == 41
  assert catalogue.nearest(there, 10_000).l0 == 445
  assert catalogue.nearest(there).l0 == 82
  # Equally near: the larger, as is canonical for attention layer 27 of 9B.
  there = catalogue.find("google/gemma-scope-9b-pt-att", 27, "16k")
  assert catalogue.nearest(there).l0 == 136
  held = catalogue.held("google/gemma-scope-2b-pt-res")
  assert held.startswith("4k on the embedding; 16k on layers 0..25;")
  assert "1m on layers 5, 12, 19" in held
  with pytest.raises(ValueError, match="'x/y' is not in the catalogue; there"):
    catalogue.find("x/y")
  name = names.parse("google/gemma-scope-2b-pt-res/layer_9/width_1m/canonical")
  with pytest.raises(
    ValueError, match="no SAE of that layer and width; it has"
  ):
    catalogue.resolve(name)


def test_neuronpedia_ids():
  name = names.parse(
    "google/gemma-scope-2b-pt-res/layer_20/width_16k/canonical"
  )
  assert catalogue.resolve(name).l0 == 71
  link = "gemma-2-2b/20-gemmascope-res-16k"
  assert names.neuronpedia(name) == link
  assert names.neuronpedia(name, 7) == f"{link}/7"
  assert names.from_neuronpedia(f"https://a.b/{link}/7") == (name, 7)
  other = dataclasses.replace(name, l0=38)
  assert names.neuronpedia(other) == f"{link}__l0-38"
  for scope, group, width in itertools.product(
    (1, 2), ("res", "transcoder"), ("16k", "262k")
  ):
    family = {1: "gemma-2-2b", 2: "gemma-3-4b-it"}[scope]
    mark = "-2" if scope == 2 else ""
    text = f"{family}/4-gemmascope{mark}-{group}-{width}"
    found, latent = names.from_neuronpedia(text)
    assert names.neuronpedia(found) == text and latent is None
    assert names.parse(str(found)) == found
  assert (
    names.neuronpedia(Name(2, "1b", False, "clt", (), "262k", "big")) is None
  )
  for text in ("gemma-3-4b/1-gemmascope-res-16k", "gpt2-small/1-res-jb", ""):
    with pytest.raises(ValueError, match="no id of Gemma Scope|no such SAE"):
      names.from_neuronpedia(text)


@pytest.mark.parametrize(
  ("name", "place"),
  [
    (
      "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
      "gemma-2-2b/20-gemmascope-res-16k",
    ),
    ("google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_38", None),
    (None, None),
  ],
)
def test_viewers_of_released_saes(name, place):
  about = {} if name is None else {"about": {"released_as": name}}
  config = SAEConfig(provenance=json.dumps(about))
  expected = place and f"https://www.neuronpedia.org/{place}/{{}}"
  assert catalogue.viewer(config) == expected

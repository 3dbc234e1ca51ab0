"""From two prompts and SAEs on disk to files that say the same."""

import dataclasses
import json

import numpy as np
import pytest

from gemmascope_jax import circuits, releases
from gemmascope_jax.circuits import export
from gemmascope_jax.experiment import circuit as command
from tests.circuits import tiny
from tests.circuits.attribute_test import ALL, ANSWER, WRONG

CLEAN, PATCH = (
  "".join(chr(i - 4) for i in ids[1:]) for ids in (tiny.CLEAN, tiny.PATCH)
)
ASKED = chr(ANSWER - 4), chr(WRONG - 4)


@pytest.fixture(scope="module")
def lm():
  # As in attribute_test, whose programs are compiled already.
  return tiny.lm(config=dataclasses.replace(tiny.CONFIG, num_layers=2))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
  root = tmp_path_factory.mktemp("saes")
  saes = {
    "res.0": tiny.sae("res.0"),
    "att.1": tiny.sae("att.1", seed=1, k=5, family="topk"),
    "mlp.1": tiny.sae("mlp.1", seed=2),
  }
  for site, sae in saes.items():
    releases.save(sae, root / site)
  return [f"{site}={root / site}" for site in saes]


def test_files_are_the_circuit(lm, given, tmp_path):
  result = command.circuit(
    lm, given, CLEAN, PATCH, *ASKED, tmp_path, slug="tiny-pair", **ALL
  )
  assert result["token_ids"] == tiny.CLEAN.tolist()
  saes = {text.split("=")[0]: text for text in given}
  assert [each["site"] for each in result["sites"][1:]] == list(saes)
  assert all(
    each["sae"] and saes[each["site"]].endswith(each["sae"].split("/")[-1])
    for each in result["sites"][1:]
  )
  direct = circuits.attribute(
    lm,
    {
      "res.0": tiny.sae("res.0"),
      "att.1": tiny.sae("att.1", seed=1, k=5, family="topk"),
      "mlp.1": tiny.sae("mlp.1", seed=2),
    },
    tiny.CLEAN,
    tiny.PATCH,
    circuits.Metric(ANSWER, WRONG),
    **ALL,
  )
  effects = [node["effect"] for node in result["nodes"]]
  np.testing.assert_allclose(effects, [n.effect for n in direct.nodes])
  found = json.loads((tmp_path / command.RESULT).read_text())
  assert found["nodes"] == result["nodes"]
  graph = json.loads((tmp_path / "graphs" / "tiny-pair.json").read_text())
  export.validate(graph)
  assert len(graph["nodes"]) == len(result["nodes"]) + 1
  assert len(graph["links"]) == len(result["edges"])
  assert (tmp_path / command.FIGURE).read_bytes()[:4] == b"\x89PNG"
  text = (tmp_path / command.TABLE).read_text()
  assert f"{result['value']:.3f}, on the patch prompt" in text


@pytest.mark.parametrize(
  "change, message",
  [
    ({"patch": CLEAN + "x"}, "Clean, 6 tokens.*Patch, 7 tokens.*Reword one"),
    ({"answer": " I"}, "answer ' I' is 2 tokens.*mind the space"),
    ({"wrong": ""}, "wrong '' is 0 tokens"),
    ({"twice": True}, "two SAEs of res.0"),
    ({"given": ["mlp.0={res}"]}, "trained at res.0, not at mlp.0"),
    ({"slug": "My circuit"}, "slug 'My circuit'"),
  ],
)
def test_what_makes_no_circuit_is_named(lm, given, tmp_path, change, message):
  asked = {"given": given[:1], "clean": CLEAN, "patch": PATCH}
  asked |= {"answer": ASKED[0], "wrong": ASKED[1], "slug": "circuit"} | change
  if asked.pop("twice", False):
    asked["given"] = given[:1] * 2
  path = given[0].split("=")[1]
  asked["given"] = [each.format(res=path) for each in asked["given"]]
  with pytest.raises(ValueError, match=f"(?s){message}"):
    command.circuit(lm, out=tmp_path / "out", **asked)
  assert not (tmp_path / "out").exists()

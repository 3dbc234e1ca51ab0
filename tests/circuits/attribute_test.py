"""Effects and edges against float64 differences of another implementation."""

import dataclasses
import math

import numpy as np
import pytest

from gemmascope_jax import circuits
from gemmascope_jax.sae.sae import SAEConfig
from tests.circuits import tiny
from tests.gemma import slow_model

ANSWER, WRONG = 77, 130
METRIC = circuits.Metric(ANSWER, WRONG)
ALL = {"nodes": 10_000, "edges": 1_000_000}


@pytest.fixture(scope="module")
def lm():
  return tiny.lm(config=dataclasses.replace(tiny.CONFIG, num_layers=2))


@pytest.fixture(scope="module")
def saes():
  topk = tiny.sae("att.1", seed=1, k=5, family="topk")
  return {"mlp.1": tiny.sae("mlp.1", seed=2), "res.0": tiny.sae("res.0")} | {
    "att.1": topk
  }


@pytest.fixture(scope="module")
def found(lm, saes):
  return circuits.attribute(lm, saes, tiny.CLEAN, tiny.PATCH, METRIC, **ALL)


class Slow:
  """The model in float64, one site at a time."""

  def __init__(self, lm, saes):
    self.lm, self.saes = lm, saes
    _, self.clean = self.run(tiny.CLEAN)
    _, self.patch = self.run(tiny.PATCH)

  def run(self, tokens, edits=None):
    logits, acts = slow_model.forward(
      self.lm.config, self.lm.params, tokens[None], edits
    )
    logits = slow_model.soft_cap(logits[0, -1], self.lm.config.final_softcap)
    return logits[ANSWER] - logits[WRONG], acts

  def code(self, site, x):
    p, k = self.saes[site].params, self.saes[site].config.k
    pre = x @ p.w_enc.astype(np.float64) + p.b_enc
    f = np.where(pre > p.threshold, np.maximum(pre, 0), 0)
    if k is not None:
      f[f < np.sort(f, axis=-1)[..., -k, None]] = 0
    f[..., 0, :] = 0  # BOS
    return f

  def error(self, site, x):
    p = self.saes[site].params
    return x - self.code(site, x) @ p.w_dec.astype(np.float64) - p.b_dec

  def move(self, node):
    """What the node's change adds to its site's activation [1, T, D]."""
    old, new = self.clean[node.site], self.patch[node.site]
    added = np.zeros_like(old)
    t = node.position
    if node.is_error:
      change = self.error(node.site, new) - self.error(node.site, old)
      added[0, t] = change[0, t]
    else:
      change = self.code(node.site, new) - self.code(node.site, old)
      w_dec = self.saes[node.site].params.w_dec.astype(np.float64)
      added[0, t] = change[0, t, node.latent] * w_dec[node.latent]
    return added

  def along(self, site, added, share, frozen=()):
    """(metric, activations) with share x added at a site."""
    hold = {r: lambda _, r=r: self.clean[r] for r in frozen}
    return self.run(tiny.CLEAN, {site: lambda x: x + share * added} | hold)

  def slope(self, site, added, value=lambda m, acts: m, frozen=()):
    """Derivative along a direction, by central differences."""
    step = 1e-5
    up = value(*self.along(site, added, step, frozen))
    down = value(*self.along(site, added, -step, frozen))
    return (up - down) / (2 * step)


@pytest.fixture(scope="module")
def slow(lm, saes):
  return Slow(lm, saes)


def _some(nodes, site, errors):
  own = [n for n in nodes if n.site == site and n.is_error == errors]
  return own[:3] + own[-1:]


@pytest.mark.parametrize("site", ["res.0", "att.1", "mlp.1"])
def test_effects_are_gradients_times_changes(found, slow, site):
  for errors in (False, True):
    nodes = _some(found.nodes, site, errors)
    assert nodes
    for node in nodes:
      added = slow.move(node)
      slope = slow.slope(site, added)
      assert node.effect == pytest.approx(slope, rel=5e-3, abs=1e-5)
      real = slow.along(site, added, 1)[0] - found.value
      assert node.ablated == pytest.approx(real, rel=5e-3, abs=1e-5)
  # All latents and errors together are the activation itself.
  whole = slow.slope(site, slow.patch[site] - slow.clean[site])
  total = found.totals[site]
  assert total["all"] == pytest.approx(whole, rel=2e-3, abs=1e-5)
  of = lambda errors: math.fsum(
    n.effect for n in found.nodes if n.site == site and n.is_error == errors
  )
  assert total["latents"] == pytest.approx(of(False), abs=1e-5)
  assert total["error"] == pytest.approx(of(True), abs=1e-5)
  assert abs(total["latents"]) > 1e-3 and abs(total["error"]) > 1e-3


def test_what_the_run_says(found, slow, saes):
  assert found.value == pytest.approx(slow.run(tiny.CLEAN)[0], rel=1e-4)
  assert found.patch_value == pytest.approx(slow.run(tiny.PATCH)[0], rel=1e-4)
  assert list(found.widths) == ["res.0", "att.1", "mlp.1"]
  effects = [abs(node.effect) for node in found.nodes]
  assert effects == sorted(effects, reverse=True)
  # Before the first token that differs, and at BOS, nothing changes.
  assert min(node.position for node in found.nodes) == 2
  node = next(n for n in found.nodes if n.site == "res.0" and not n.is_error)
  code = slow.code("res.0", slow.patch["res.0"])
  place = node.position, node.latent
  assert node.patch == pytest.approx(code[0][place], rel=1e-3, abs=1e-5)
  both = found.agreement
  assert set(both["latents"]) == {"nodes", "pearson", "spearman", "sign"}
  count = both["latents"]["nodes"] + both["errors"]["nodes"]
  assert count == len(found.nodes)
  latents = [node for node in found.nodes if not node.is_error]
  pearson = np.corrcoef(
    [node.effect for node in latents], [node.ablated for node in latents]
  )[0, 1]
  assert both["latents"]["pearson"]["mean"] == pytest.approx(pearson)


def test_the_edges_out_of_a_node_add_up_to_its_effect(found):
  out = np.zeros(len(found.nodes))
  for edge in found.edges:
    out[edge.source] += edge.weight
  effects = np.array([node.effect for node in found.nodes])
  np.testing.assert_allclose(out, effects, rtol=1e-3, atol=2e-5)
  names = ["embed", "res.0", "att.1", "mlp.1"]
  place = {name: i for i, name in enumerate(names)}
  for edge in found.edges:
    if edge.target is not None:
      one, other = found.nodes[edge.source], found.nodes[edge.target]
      assert place[one.site] < place[other.site]
      assert one.position <= other.position
  kinds = {
    (found.nodes[e.source].site, e.target and found.nodes[e.target].site)
    for e in found.edges
  }
  assert ("res.0", "mlp.1") in kinds and ("att.1", "mlp.1") in kinds
  # Whatever the embedding does it does through the stream after block 0.
  assert not {("embed", "mlp.1"), ("embed", None)} & kinds


def _read(slow, node):
  """What a node is on given activations."""
  at = (0, node.position)
  if node.is_error:
    return lambda _, acts: slow.error(node.site, acts[node.site])[at]
  at += (node.latent,)
  return lambda _, acts: slow.code(node.site, acts[node.site])[at]


@pytest.mark.parametrize("errors", [False, True])
def test_an_edge_is_the_effect_through_its_target_alone(found, slow, errors):
  """From res.0 to mlp.1, with the heads of block 1 held still."""
  pairs = [
    (found.nodes[edge.source], found.nodes[edge.target], edge.weight)
    for edge in found.edges
    if edge.target is not None
    and found.nodes[edge.source].site == "res.0"
    and found.nodes[edge.target].site == "mlp.1"
    and found.nodes[edge.target].is_error == errors
    and found.nodes[edge.source].is_error == errors
  ]
  assert pairs
  for u, d, weight in pairs[:3]:
    read = _read(slow, d)
    change = slow.slope("res.0", slow.move(u), read, frozen=["att.1"])
    added = np.zeros_like(slow.clean["mlp.1"])
    if not errors:
      change = change * slow.saes["mlp.1"].params.w_dec[d.latent]
    added[0, d.position] = change
    real = slow.slope("mlp.1", added)
    assert weight == pytest.approx(real, rel=5e-3, abs=2e-6)


def test_integrated_gradients_add_up_to_the_real_change(lm, saes, slow, found):
  only = {"mlp.1": saes["mlp.1"]}
  smooth = circuits.attribute(
    lm, only, tiny.CLEAN, tiny.PATCH, METRIC, steps=12, ablate=False, edges=0
  )
  change = slow.patch["mlp.1"] - slow.clean["mlp.1"]
  real = slow.along("mlp.1", change, 1)[0] - found.value
  total = smooth.totals["mlp.1"]["all"]
  assert total == pytest.approx(real, rel=2e-3)
  assert abs(found.totals["mlp.1"]["all"] - real) > 5 * abs(total - real)
  assert smooth.agreement is None and smooth.nodes[0].ablated is None
  assert smooth.edges == []


def test_the_zero_baseline_takes_latents_and_errors_away(lm, saes, slow):
  only = {"mlp.1": saes["mlp.1"]}
  found = circuits.attribute(
    lm, only, tiny.CLEAN, None, METRIC, ablate=False, nodes=10_000, edges=0
  )
  assert found.patch_tokens is None and found.patch_value is None
  nodes = [n for n in found.nodes if n.site == "mlp.1" and not n.is_error]
  assert nodes and all(node.patch == 0 < node.clean for node in nodes)
  code = slow.code("mlp.1", slow.clean["mlp.1"])
  assert len(nodes) == np.count_nonzero(code[0, -1])  # the last block's
  x, bias = slow.clean["mlp.1"], saes["mlp.1"].params.b_dec
  added = np.where(np.arange(x.shape[1])[None, :, None] > 0, bias - x, 0)

  whole = slow.slope("mlp.1", added)
  assert found.totals["mlp.1"]["all"] == pytest.approx(whole, rel=2e-3)


def test_only_the_largest_nodes_are_kept(lm, saes, found):
  few = circuits.attribute(
    lm, saes, tiny.CLEAN, tiny.PATCH, METRIC, nodes=25, edges=0, ablate=False
  )
  same = lambda n: (n.site, n.position, n.latent)
  assert [same(n) for n in few.nodes] == [same(n) for n in found.nodes[:25]]
  assert few.totals["mlp.1"] == pytest.approx(found.totals["mlp.1"], rel=1e-5)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"patch": tiny.PATCH[:-1]}, "has 6 tokens, the patch prompt 5"),
    ({"clean": tiny.CLEAN[None]}, r"expected \[T\] each"),
    ({"metric": circuits.Metric(300)}, "token 300"),
    ({"nodes": 0}, "nodes 0"),
    ({"edges": -1}, "edges -1"),
    ({"saes": {}}, "no SAEs"),
    ({"saes": {"res.1": tiny.sae("res.0")}}, "trained at site res.0, not res"),
    ({"saes": {"res.2": tiny.sae("res.1")}}, "gemma-tiny has layers 0..1"),
    ({"target": "mlp.1"}, "transcoder to mlp.1"),
    ({"parts": (("res.1", 12), ("res.2", 12))}, "crosscoder"),
    ({"nan": True}, "not finite"),
  ],
)
def test_bad_input_is_named(lm, saes, change, message):
  given = dict(saes={"res.1": tiny.sae("res.1")}, metric=METRIC)
  given |= dict(clean=tiny.CLEAN, patch=tiny.PATCH)
  fields = {}
  if "target" in change:
    fields = {"target_site": change.pop("target")}
  if "parts" in change:
    fields = {"parts": change.pop("parts")}
  if fields:
    sae = given["saes"]["res.1"]
    given["saes"] = {
      "res.1": sae.replace(config=SAEConfig(site="res.1", **fields))
    }
  if change.pop("nan", False):
    sae = saes["mlp.1"]
    bad = dataclasses.replace(sae.params, w_dec=sae.params.w_dec * np.nan)
    given["saes"] = saes | {"mlp.1": sae.replace(params=bad)}
  error = FloatingPointError if message == "not finite" else ValueError
  with pytest.raises(error, match=message):
    circuits.attribute(lm, **(given | change))

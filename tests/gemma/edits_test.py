"""Taps, edits, early stop and late start: what the studies rely on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax import gemma
from gemmascope_jax.gemma import sites

CONFIG = dataclasses.replace(
  gemma.preset("gemma-3-270m"),
  name="tiny",
  vocab_size=50,
  width=16,
  num_layers=4,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_width=24,
  window=5,
  layer_pattern=("local", "global"),
  attn_softcap=3.0,
  final_softcap=4.0,
)
TOKENS = np.random.default_rng(0).integers(0, 50, (2, 11))
ALL = tuple(f"{k}.{i}" for i in range(4) for k in sites.KINDS)


@functools.cache
def _params():
  """Random, norm scales included."""
  shapes = jax.eval_shape(lambda: gemma.init(CONFIG, jax.random.key(0)))
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32),
    shapes,
  )


def _forward(params=None, tokens=TOKENS, **arguments):
  params = _params() if params is None else params
  return jax.jit(
    lambda params, tokens: gemma.forward(CONFIG, params, tokens, **arguments)
  )(params, tokens)


@functools.cache
def _clean():
  return _forward(taps=ALL)


def _same(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_taps_change_nothing():
  plain = _forward()
  assert plain.acts == {}
  _same(plain.logits, _clean().logits)


def test_edits_that_return_what_they_got_change_nothing():
  out = _forward(taps=ALL, edits={site: lambda x: x for site in ALL})
  for ours, theirs in zip(
    jax.tree.leaves(out), jax.tree.leaves(_clean()), strict=True
  ):
    _same(ours, theirs)


@pytest.mark.parametrize("site", ["res.1", "mlp.1", "att.1", "mlp_in.1"])
def test_a_site_returns_its_value_before_the_edit(site):
  out = _forward(taps=ALL, edits={site: lambda x: x + 1.0})
  clean = _clean()
  changed = {
    name
    for name in ALL
    if np.abs(out.acts[name] - clean.acts[name]).max() > 1e-4
  }
  # In the order of the computation; the edited one itself is still clean.
  order = [
    f"{k}.{i}" for i in range(4) for k in ("att", "mlp_in", "mlp", "res")
  ]
  assert changed == set(order[order.index(site) + 1 :])
  assert np.abs(out.logits - clean.logits).max() > 1e-3


def test_edits_of_the_residual_stream_and_the_mlp_add_up():
  def added(x):
    return x + 0.5

  by_res = _forward(taps=("res.3",), edits={"res.1": added})
  by_mlp = _forward(taps=("res.3",), edits={"mlp.1": added})
  _same(by_res.acts["res.3"], by_mlp.acts["res.3"])


def test_residual_stream_is_the_sum_of_what_was_added():
  clean = _clean()
  out = _forward(taps=("res.2",), edits={"mlp.2": jnp.zeros_like})
  _same(out.acts["res.2"], clean.acts["res.2"] - clean.acts["mlp.2"])


def test_mlp_input_has_no_gain_and_is_edited_before_it():
  clean = _clean()
  # Its rows have norm sqrt(D), which a gain would spoil.
  _same(
    jnp.sum(jnp.square(clean.acts["mlp_in.1"]), -1),
    np.full(TOKENS.shape, CONFIG.width),
  )
  # Scaling it by c is scaling the gain (1 + w) by c.
  params = _params()
  layer = params["layer_1"]
  scale = layer["pre_mlp_norm"]["scale"]
  scaled = layer | {"pre_mlp_norm": {"scale": 1.7 * (1 + scale) - 1}}
  expected = _forward(params | {"layer_1": scaled})
  found = _forward(edits={"mlp_in.1": lambda x: 1.7 * x})
  _same(found.logits, expected.logits)


def test_heads_are_edited_before_the_output_matrix():
  out = _forward(taps=("res.0",), edits={"att.0": jnp.zeros_like})
  layer = _params()["layer_0"]
  attn = layer["attn"] | {"o": jnp.zeros_like(layer["attn"]["o"])}
  expected = _forward(
    _params() | {"layer_0": layer | {"attn": attn}}, taps=("res.0",)
  )
  _same(out.acts["res.0"], expected.acts["res.0"])


def test_edits_are_cast_to_the_activations_dtype():
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), _params())
  seen = []

  def edit(x):
    seen.append(x.dtype)
    return 2.0 * x.astype(jnp.float32)

  out = _forward(half, taps=("res.3",), edits={"mlp_in.1": edit, "res.2": edit})
  assert seen == [jnp.bfloat16, jnp.bfloat16]
  assert out.acts["res.3"].dtype == jnp.bfloat16


@pytest.mark.parametrize("num_layers", [0, 2, 4])
def test_early_stop_with_those_layers_alone(num_layers):
  part = {"embedder": _params()["embedder"]} | {
    f"layer_{i}": _params()[f"layer_{i}"] for i in range(num_layers)
  }
  taps = tuple(s for s in ALL if sites.parse(s).layer < num_layers)
  out = _forward(part, taps=taps, num_layers=num_layers)
  assert out.logits is None
  for site in taps:
    _same(out.acts[site], _clean().acts[site])
  if num_layers:
    _same(out.residual, _clean().acts[f"res.{num_layers - 1}"])
  else:
    _same(out.residual, _params()["embedder"]["embedding"][TOKENS] * 4.0)


def test_logits_only_if_asked():
  out = _forward(logits=False)
  assert out.logits is None
  _same(out.residual, _clean().residual)


@pytest.mark.parametrize("layer", [1, 3, 4])
def test_start_from_a_residual_stream(layer):
  stream = _clean().acts[f"res.{layer - 1}"]
  part = {
    name: tree
    for name, tree in _params().items()
    if not name.startswith("layer_") or int(name[6:]) >= layer
  }
  taps = tuple(s for s in ALL if sites.parse(s).layer >= layer)
  out = jax.jit(
    lambda params, stream: gemma.forward(
      CONFIG, params, TOKENS, start=(layer, stream), taps=taps
    )
  )(part, stream)
  _same(out.logits, _clean().logits)
  assert set(out.acts) == set(taps)
  for site in taps:
    _same(out.acts[site], _clean().acts[site])


def test_gradient_through_edits():
  chosen = ("att.1", "mlp_in.1", "mlp.1", "res.1")
  rng = np.random.default_rng(2)
  directions = [
    jnp.asarray(rng.normal(size=_clean().acts[s].shape), jnp.float32)
    for s in chosen
  ]

  @jax.jit
  @jax.value_and_grad
  def loss(amounts):
    edits = {
      site: lambda x, i=i: x + amounts[i] * directions[i]
      for i, site in enumerate(chosen)
    }
    return gemma.next_token_losses(
      CONFIG, _params(), TOKENS, edits=edits, chunk=16
    ).mean()

  at, step = jnp.full(4, 0.1), 3e-3
  _, slopes = loss(at)
  for i, slope in enumerate(slopes):
    along = lambda size, i=i: float(loss(at.at[i].add(size * step))[0])
    # The fourth-order central difference; float32 leaves errors of 2e-4.
    near, far = along(1) - along(-1), along(2) - along(-2)
    estimate = (8 * near - far) / (12 * step)
    assert abs(slope) > 1e-2
    np.testing.assert_allclose(
      slope, estimate, rtol=1e-2, atol=4e-4, err_msg=chosen[i]
    )


def test_sites_may_be_given_as_sites():
  site = sites.Site("mlp", 2)
  out = _forward(taps=(site,), edits={site: jnp.zeros_like})
  _same(out.acts["mlp.2"], _clean().acts["mlp.2"])


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"taps": ("res.4",)}, r"site res\.4: tiny has layers 0\.\.3"),
    ({"edits": {"mlp.9": jnp.sin}}, r"site mlp\.9: tiny has layers 0\.\.3"),
    ({"taps": ("resid.1",)}, "site 'resid.1': expected KIND.LAYER"),
    (
      {"taps": ("res.2",), "num_layers": 2},
      r"site res\.2: only layers 0\.\.1 of tiny run here",
    ),
    ({"num_layers": 5}, r"layers 0\.\.4: tiny has layers 0\.\.3"),
    ({"num_layers": -1}, r"tiny has layers 0\.\.3"),
    (
      {"start": (2, np.zeros((2, 11, 16))), "taps": ("res.1",)},
      r"site res\.1: only layers 2\.\.3 of tiny run here",
    ),
    (
      {"start": (2, np.zeros((2, 10, 16)))},
      r"residual stream of shape \(2, 10, 16\), expected \(2, 11, 16\)",
    ),
    (
      {"edits": {"att.1": lambda x: x[..., :16]}},
      r"edit of site att\.1 returned shape \(2, 11, 16\): expected"
      r" \(2, 11, 32\)",
    ),
    (
      {"mask": np.ones((2, 12), bool)},
      r"mask of shape \(2, 12\) for tokens of shape \(2, 11\)",
    ),
    (
      {"mask": np.ones((2, 11), np.int32)},
      "mask of dtype int32: expected bool",
    ),
  ],
)
def test_bad_arguments(arguments, message):
  with pytest.raises(ValueError, match=message):
    _forward(**arguments)


def test_layers_that_were_not_loaded():
  part = {k: v for k, v in _params().items() if k != "layer_2"}
  with pytest.raises(ValueError, match="parameters of tiny: layer_2 missing"):
    _forward(part)
  assert _forward(part, num_layers=2).residual.shape == (2, 11, 16)

"""Gathered contexts against a brute-force look at every row of the store."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax.data.stores.harvest import harvest
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig
from gemmascope_jax.studies.interpretability import gathering
from gemmascope_jax.studies.interpretability.chunks import Chunks
from gemmascope_jax.studies.interpretability.contexts import Design
from tests.data import tiny_gemma

DESIGN = Design(latents=6, length=8, explain=3, top=2, quantile=2, random=4)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  return harvest(
    tiny_gemma.lm(),
    tiny_gemma.windows(),
    ("res.1",),
    tmp_path_factory.mktemp("gathering") / "store",
    tiny_gemma.POLICY,
    rows=900,
    progress=False,
  )


def _sae(store, k=None, width=30):
  random = np.random.default_rng(0)
  mean, norm = store.statistics("res.1")
  d = store.width("res.1")
  w_dec = random.normal(size=(width, d)).astype(np.float32)
  w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
  scale = np.float32(np.sqrt((norm - np.square(mean).sum()) / d))
  threshold = np.full(width, 1.0, np.float32) * scale
  threshold[:5] = np.inf  # dead
  return SAE(
    Params(
      w_enc=w_dec.T.copy(),
      b_enc=(-mean.astype(np.float32) @ w_dec.T),
      w_dec=w_dec,
      b_dec=mean.astype(np.float32),
      threshold=threshold,
    ),
    SAEConfig(site="res.1", k=k),
  )


def _brute_force(store, sae, length=8):
  """{(window, place): (tokens, activations [T, M], keep)}."""
  values = np.asarray(
    sae.encode(jnp.asarray(store.read("res.1", 0, store.rows)))
  )
  made = {}
  for (window, position), row in zip(
    store.index(0, store.rows), values, strict=True
  ):
    place = int(position) // length
    if (place + 1) * length > store.tokens.shape[1]:
      continue
    tokens = store.tokens[window, place * length : (place + 1) * length]
    fresh = (tokens, np.zeros((length, sae.width)), np.zeros(length, bool))
    _, acts, keep = made.setdefault((int(window), place), fresh)
    acts[position % length], keep[position % length] = row, True
  return {at: c for at, c in made.items() if 2 * c[2].sum() >= length}


def _find(made, contexts, i, latent):
  """Where a gathered context comes from: all that look the same."""
  return [
    at
    for at, (tokens, acts, keep) in made.items()
    if np.array_equal(tokens, contexts.tokens[i])
    and np.array_equal(keep, contexts.keep[i])
    and np.allclose(acts[:, latent], contexts.activations[i], atol=1e-4)
  ]


@pytest.mark.parametrize("k", [None, 3])
def test_contexts_are_the_stores_and_the_strongest_of_their_half(store, k):
  sae = _sae(store, k)
  made = _brute_force(store, sae)
  found = gathering.gather(sae, store, DESIGN, seed=3, progress=False)
  fires = np.array([(acts > 0).any(axis=0) for _, acts, _ in made.values()])
  total = sum(keep.sum() for _, _, keep in made.values())
  assert found.tokens == total
  assert found.alive == fires.any(axis=0).sum()
  assert 0 < found.eligible <= found.alive and found.width == 30
  assert len(found.samples) == 6 == len({s.latent for s in found.samples})
  shown_windows, held_windows = set(), set()
  for sample in found.samples:
    active = [
      (acts[:, sample.latent] > 0).sum() for _, acts, _ in made.values()
    ]
    assert sample.frequency == pytest.approx(sum(active) / total)
    assert sample.kinds == DESIGN.kinds
    for part, windows in (
      (sample.shown, shown_windows),
      (sample.held_out, held_windows),
    ):
      for i in range(len(part)):
        origins = _find(made, part, i, sample.latent)
        assert origins, "a context that is not in the store"
        if len(origins) == 1:
          windows.add(origins[0][0])
    peaks = sample.shown.peaks()
    assert (np.diff(peaks) <= 0).all() and peaks[-1] > 0
    held = sample.held_out.peaks()
    assert (held[:4] > 0).all() and held[1] >= held[2:].max()
    assert held[2] >= held[3]
  assert not shown_windows & held_windows
  # The strongest of the half: nothing in its windows is above what was shown.
  best = {
    s.latent: max(
      acts[:, s.latent].max()
      for (window, _), (_, acts, _) in made.items()
      if window not in held_windows
    )
    for s in found.samples
  }
  for sample in found.samples:
    assert sample.shown.peaks()[0] <= best[sample.latent] + 1e-4


def test_memory_limits_change_nothing(store, monkeypatch):
  sae = _sae(store)
  whole = gathering.gather(sae, store, DESIGN, seed=1, progress=False)
  monkeypatch.setattr(gathering, "_BLOCK_BYTES", 4 * 8 * 30 * 3)
  monkeypatch.setattr(gathering, "_PEAK_BYTES", 1)
  parts = gathering.gather(sae, store, DESIGN, seed=1, progress=False)
  for a, b in zip(whole.samples, parts.samples, strict=True):
    assert a.latent == b.latent and a.frequency == b.frequency
    np.testing.assert_array_equal(a.held_out.tokens, b.held_out.tokens)
    np.testing.assert_allclose(
      a.held_out.activations, b.held_out.activations, atol=1e-5
    )


def test_latents_are_drawn_at_random(store):
  sae = _sae(store)
  draws = [
    gathering.gather(
      sae,
      store,
      dataclasses.replace(DESIGN, latents=3),
      seed=seed,
      progress=False,
    )
    for seed in range(4)
  ]
  chosen = [tuple(s.latent for s in found.samples) for found in draws]
  assert len(set(chosen)) > 1
  assert min(min(each) for each in chosen) >= 5  # never a dead one


def test_what_was_gathered_is_found_again(store, tmp_path, monkeypatch):
  sae = _sae(store)
  gather = lambda **change: gathering.gather(
    change.pop("sae", sae),
    store,
    DESIGN,
    folder=tmp_path,
    progress=False,
    **change,
  )
  first = gather()
  with monkeypatch.context() as patch:
    patch.setattr(gathering, "_count", None)
    again = gather()
    with pytest.raises(TypeError):
      gather(seed=1)
    with pytest.raises(TypeError):
      gather(sae=_sae(store, k=3))
  assert again.eligible == first.eligible
  for a, b in zip(first.samples, again.samples, strict=True):
    assert a.shown.fingerprint() == b.shown.fingerprint()
    assert a.held_out.fingerprint() == b.held_out.fingerprint()
  (path,) = tmp_path.glob("contexts_*.npz")
  path.write_bytes(path.read_bytes()[:200])
  assert gather().eligible == first.eligible


def test_a_dead_sae_has_no_samples(store):
  sae = _sae(store)
  params = sae.params.replace(threshold=np.full(30, np.inf, np.float32))
  found = gathering.gather(
    sae.replace(params=params), store, DESIGN, progress=False
  )
  assert found.samples == [] and found.alive == found.eligible == 0


def test_contexts_that_fit_nowhere_are_refused(store):
  with pytest.raises(
    ValueError, match="contexts of 99 tokens: .* windows of 16"
  ):
    Chunks(store, "res.1", 99)
  with pytest.raises(ValueError, match="no context of 8 tokens in 2 rows"):
    Chunks(store, "res.1", 8, rows=2)
  with pytest.raises(ValueError, match="too few for 2 top"):
    many = dataclasses.replace(DESIGN, random=500)
    gathering.gather(_sae(store), store, many, progress=False)

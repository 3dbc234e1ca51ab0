import dataclasses

import jax
import numpy as np
import pytest
import tiny_gemma
from tiny_gemma import POLICY, SITES

from gemmascope_jax.data.stores import forward
from gemmascope_jax.data.stores.forward import Forward
from gemmascope_jax.parallel.mesh import make_mesh


def test_rows_are_those_of_the_store(lm, store):
  made = Forward(lm, store.plan, store.tokens)
  assert made.row_starts[-1] == 900 and made.row_starts[0] == 0
  for first in (0, 20, 56):  # 60 windows in batches of 4; 56 is the last
    acts = made.dispatch(first)
    start, stop = made.row_starts[[first, min(first + 4, 60)]]
    for site in SITES:
      np.testing.assert_array_equal(
        made.collect(first, acts, site), store.read(site, start, stop)
      )


def test_row_starts_of_many_windows(store, monkeypatch):
  whole = forward.row_starts(POLICY, store.tokens)
  assert whole.dtype == np.int64
  kept = POLICY.keep(np.array(store.tokens)).sum(axis=1)
  np.testing.assert_array_equal(np.diff(whole), kept)
  monkeypatch.setattr(forward, "_WINDOWS_AT_ONCE", 7)
  np.testing.assert_array_equal(forward.row_starts(POLICY, store.tokens), whole)


def test_a_mesh_gives_the_same_rows(lm, store):
  ways = min(2, jax.device_count())
  mesh = make_mesh({"data": ways})
  made = Forward(lm, store.plan, store.tokens, mesh)
  acts = made.dispatch(8)
  assert acts["res.1"].sharding.num_devices == ways
  start, stop = made.row_starts[[8, 12]]
  np.testing.assert_allclose(
    made.collect(8, acts, "res.1"), store.read("res.1", start, stop), atol=1e-5
  )


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_a_batch_that_the_mesh_cannot_split(lm, store):
  plan = dataclasses.replace(store.plan, batch=3)
  with pytest.raises(ValueError, match="batch 3: the mesh splits it 2 ways"):
    Forward(lm, plan, store.tokens, make_mesh({"data": 2}))


def test_tokens_of_another_plan(lm, store):
  with pytest.raises(ValueError, match=r"tokens \[59, 16\]: the plan is of 60"):
    Forward(lm, store.plan, store.tokens[1:])
  assert len(tiny_gemma.windows().tokens) > 60

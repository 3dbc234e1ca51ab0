import numpy as np
import pytest

from gemmascope_jax.data.serving.owned_steps import OwnedSteps
from gemmascope_jax.data.streams.order import Order, Shuffle


@pytest.mark.parametrize("kind", ["bucket", "global"])
@pytest.mark.parametrize("batch", [1, 7, 60, 150])
@pytest.mark.parametrize("owned", [(0, 900), (0, 128), (256, 512), (896, 900)])
def test_no_step_with_rows_is_passed_over(kind, batch, owned):
  shuffle = Shuffle(seed=1, kind=kind, bucket_rows=100, block_rows=10)
  order = Order(900, batch, shuffle)
  steps = OwnedSteps(order, owned)
  count = 2 * 900 // batch + 3
  found, step = [], steps.following(0)
  while step < count:
    found.append(step)
    step = steps.following(step + 1)
  whole = Order(900, 900, shuffle)  # an epoch a batch: fast
  rows = np.concatenate([whole.row_numbers(epoch) for epoch in range(4)])
  mine = np.flatnonzero((rows >= owned[0]) & (rows < owned[1]))
  having = [step for step in np.unique(mine // batch) if step < count]
  assert set(having) <= set(found)
  if kind == "bucket":  # and few that have none
    buckets = -(-owned[1] // 100) - owned[0] // 100
    most = 3 * (buckets * 100 // batch + 2)
    assert len(found) <= most
  assert np.all(np.diff(found) > 0)

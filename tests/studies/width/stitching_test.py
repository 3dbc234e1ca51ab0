"""The change of error against doing it, and classes that are planted."""

import numpy as np
import pytest

from gemmascope_jax.studies.activity import active, entries
from gemmascope_jax.studies.width import stitching
from gemmascope_jax.studies.width.stitching import CLASSES, classify
from tests.studies.activity import rows as made


@pytest.mark.parametrize("numbers", [1 << 24, 10])
def test_the_change_is_that_of_putting_the_latent_in(numbers, monkeypatch):
  monkeypatch.setattr(stitching, "_NUMBERS", numbers)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(60, 5)).astype(np.float32)
  wide = made.sae(
    rng.normal(size=(5, 9)), rng.normal(size=(9, 5)), threshold=0.3
  )
  error = rng.normal(size=(60, 5)).astype(np.float32)
  added = stitching.Stitching(np.asarray(wide.params.w_dec), 3)
  for group in range(3):
    part = slice(group * 20, group * 20 + 20)
    found = active(entries.on_device(wide), x[part])
    added.add(found, error[part], group)
  inserted = added.finish()
  code = np.asarray(wide.encode(x), np.float64)
  w_dec = np.asarray(wide.params.w_dec, np.float64)
  with_it = np.square(error[:, None] - code[..., None] * w_dec).sum(-1)
  change = with_it - np.square(error).sum(-1)[:, None]
  np.testing.assert_allclose(inserted.change(), change.mean(0), rtol=1e-4)
  np.testing.assert_array_equal(inserted.fired.sum(0), (code > 0).sum(0))
  one = inserted.change(np.array([0.0, 1.0, 0.0]))
  np.testing.assert_allclose(one, change[20:40].mean(0), rtol=1e-4, atol=1e-6)
  groups = change.reshape(3, 20, -1).sum(1)
  spread = groups - change.mean(0) * 20
  expected = np.sqrt(3 / 2 * np.square(spread).sum(0)) / 60
  np.testing.assert_allclose(inserted.stderr(), expected, rtol=1e-3)


def test_classes_follow_their_definitions():
  rows = [  # change, fires, cosine, parent, class
    (-0.1, True, 0.9, 0, "novel"),
    (0.1, True, 0.9, 1, "split"),
    (0.1, True, 0.8, 1, "split"),
    (0.1, True, 0.9, 2, "kept"),
    (0.1, True, 0.2, 2, "absent"),
    (0.0, False, 0.9, 3, "dead"),
    (0.1, True, 0.9, 3, "kept"),  # the other child is dead
  ]
  change, fires, cosine, parent, names = map(list, zip(*rows, strict=True))
  found = classify(
    np.array(change), np.array(fires), np.array(cosine), np.array(parent)
  )
  assert [CLASSES[i] for i in found] == names

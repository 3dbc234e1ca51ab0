import numpy as np
import pytest

from gemmascope_jax.data.streams.order import Order, Shuffle, _Feistel


def orders(rows):
  return [
    Order(rows, 60, Shuffle(seed=3, bucket_rows=250)),
    Order(rows, 60, Shuffle(3, "global", bucket_rows=256, block_rows=1)),
    Order(rows, 60, Shuffle(3, "global", bucket_rows=256, block_rows=32)),
    Order(rows, 60, Shuffle(3, "global", bucket_rows=1 << 20, block_rows=8)),
  ]


@pytest.mark.parametrize("rows", [900, 960, 61, 60])
@pytest.mark.parametrize("which", range(4))
def test_every_row_once_an_epoch(rows, which):
  order = orders(rows)[which]
  steps = -(-3 * rows // 60)
  sequence = np.concatenate([order.row_numbers(s) for s in range(steps)])
  epochs = [sequence[e * rows : (e + 1) * rows] for e in range(3)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(rows))
    assert list(epoch) != sorted(epoch)
  assert list(epochs[0]) != list(epochs[1])


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("count", [1, 2, 4])
def test_parts_of_batches_join_up_to_the_batch(which, count):
  order = orders(900)[which]
  for step in (0, 3, 4, 14, 15, 40):
    whole = order.row_numbers(step)
    bounds = [round(i * 60 / count) for i in range(count + 1)]
    parts = [
      order.row_numbers(step, slice(a, b))
      for a, b in zip(bounds, bounds[1:], strict=False)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_batch_size_does_not_change_the_order():
  for shuffle in (Shuffle(1), Shuffle(1, "global", 128, 16)):
    small, large = (Order(500, size, shuffle) for size in (7, 100))
    np.testing.assert_array_equal(
      np.concatenate([small.row_numbers(s) for s in range(100)])[:700],
      np.concatenate([large.row_numbers(s) for s in range(7)]),
    )


def test_a_bucket_of_the_global_shuffle_is_made_of_blocks():
  order = Order(5000, 50, Shuffle(0, "global", bucket_rows=256, block_rows=32))
  for bucket in range(order.buckets):
    members = order.members(1, bucket)
    runs = np.split(members, np.flatnonzero(np.diff(members) != 1) + 1)
    assert len(members) == order.bucket_size(bucket)
    assert len(runs) <= 256 // 32 + 1
    assert np.ptp(members) > 256  # from all over the store


def test_global_shuffle_is_uniform():
  # The place of a row over epochs: mean and spread of a uniform, and no
  # correlation between neighbours; three standard errors of 200 epochs.
  rows, epochs = 300, 200
  order = Order(rows, 300, Shuffle(5, "global", bucket_rows=300, block_rows=1))
  places = np.stack([np.argsort(order.row_numbers(e)) for e in range(epochs)])
  mean = (rows - 1) / 2
  spread = np.sqrt((rows**2 - 1) / 12)
  assert abs(places[:, 7].mean() - mean) < 3 * spread / epochs**0.5
  assert abs(places[:, 299].mean() - mean) < 3 * spread / epochs**0.5
  together = np.corrcoef(places[:, :-1].ravel(), places[:, 1:].ravel())[0, 1]
  assert abs(together) < 3 / np.sqrt(epochs * rows)


def neighbours_of_one_document(rows, documents):
  owner = documents[rows]
  return (owner[1:] == owner[:-1]).mean()


@pytest.mark.parametrize(
  "shuffle",
  [
    Shuffle(2, bucket_rows=20_000),
    Shuffle(2, "global", bucket_rows=20_000, block_rows=1),
    Shuffle(2, "global", bucket_rows=20_000, block_rows=100),
  ],
)
def test_neighbours_share_documents_as_chance_has_it(shuffle):
  # 20,000 rows of documents of 50: chance is 49/19,999 for any two rows. A
  # block holds several documents or parts of them, so only its bucket, which
  # here is everything, decides.
  documents = np.arange(20_000) // 50
  order = Order(20_000, 20_000, shuffle)
  shares = [
    neighbours_of_one_document(order.row_numbers(s), documents)
    for s in range(10)
  ]
  chance = 49 / 19_999
  error = np.sqrt(chance / (10 * 19_999))
  assert abs(np.mean(shares) - chance) < 4 * error


def test_order_is_stable_across_versions():
  # Golden: a run that is resumed after an update must see the same batches.
  first = Order(900, 5, Shuffle(7)).row_numbers(0)
  assert first.tolist() == [887, 535, 753, 631, 201]
  shuffle = Shuffle(7, "global", bucket_rows=64, block_rows=16)
  found = Order(900, 5, shuffle).row_numbers(0).tolist()
  assert found == [146, 149, 120, 605, 848]


@pytest.mark.parametrize("count", [1, 2, 3, 15, 16, 17, 1000, 4097])
def test_feistel_is_a_permutation(count):
  network = _Feistel(count, 11, 2)
  numbers = np.arange(count)
  mapped = network(numbers)
  assert sorted(mapped) == list(range(count))
  np.testing.assert_array_equal(network.inverse(mapped), numbers)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: Shuffle(kind="none"), "shuffle 'none': expected one of bucket"),
    (lambda: Shuffle(seed=-1), "seed -1"),
    (lambda: Shuffle(bucket_rows=0), "bucket_rows 0"),
    (lambda: Shuffle(0, "global", 100, 33), "bucket_rows 100: .* multiple"),
    (lambda: Order(10, 11, Shuffle()), r"batch_size 11: expected 1\.\.10"),
    (lambda: Order(10, 0, Shuffle()), "batch_size 0"),
    (lambda: Order(10, 2, Shuffle()).row_numbers(-1), "step -1"),
  ],
)
def test_errors(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_json_round_trip():
  shuffle = Shuffle(4, "global", 512, 64)
  assert Shuffle.from_dict(shuffle.to_dict()) == shuffle
  with pytest.raises(TypeError):
    Shuffle.from_dict({"sed": 1})

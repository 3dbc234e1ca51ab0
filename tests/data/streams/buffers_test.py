import gc
import threading

import jax
import numpy as np
import pytest

from gemmascope_jax.data.streams.buffers import Buffers

SHAPE, FLOAT = (512, 300), np.dtype(np.float32)


def place(array):
  return array.ctypes.data


def test_memory_is_used_again_once_nothing_refers_to_it():
  buffers = Buffers()
  places = {place(buffers.take(SHAPE, FLOAT)) for _ in range(50)}
  assert len(places) == 1
  kept = buffers.take(SHAPE, FLOAT)
  assert place(buffers.take(SHAPE, FLOAT)) != place(kept)


@pytest.mark.parametrize(
  "keep",
  [
    lambda x: x,
    lambda x: x[3:5],
    lambda x: x.view(np.uint8).reshape(-1)[7:],
    memoryview,
    lambda x: jax.device_put(x),
    lambda x: jax.numpy.asarray(x)[2:],
    np.from_dlpack,
  ],
)
def test_what_is_kept_in_any_way_is_not_overwritten(keep):
  buffers = Buffers()
  kept = []
  for number in range(12):
    array = buffers.take(SHAPE, FLOAT)
    array[:] = number
    kept.append(keep(array))
    del array
  for number, held in enumerate(kept):
    values = np.asarray(held)
    if values.dtype != np.float32:
      values = values[1:].view(np.float32)
    assert (values == number).all()


def test_other_shapes_and_types_share_it():
  buffers = Buffers()
  first = place(buffers.take(SHAPE, FLOAT))
  half = buffers.take(SHAPE, np.dtype(np.uint16))
  assert place(half) == first and half.dtype == np.uint16
  assert half.shape == SHAPE and half.flags.c_contiguous
  assert place(buffers.take((1024, 300), FLOAT)) != first


def test_threads_never_share_an_array():
  buffers, wrong = Buffers(), []

  def work(number):
    for _ in range(300):
      array = buffers.take(SHAPE, FLOAT)
      array[:] = number
      gc.get_count()
      if not (array == number).all():
        wrong.append(number)

  threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong

import random
import tracemalloc

from gemmascope_jax.data.text.seen import Seen


def test_it_is_a_set():
  draw = random.Random(0)
  keys = [draw.choice((0, 2**64 - 1, draw.getrandbits(64))) for _ in range(999)]
  keys += [draw.choice(keys) for _ in range(2000)] + list(range(500))
  for recent in (1, 2, 7, 64, 10**6):
    seen, oracle = Seen(recent), set()
    for key in keys:
      assert seen.add(key) == (key not in oracle)
      oracle.add(key)
      assert len(seen) == len(oracle)


def test_memory_is_at_most_16_bytes_a_key():
  count, draw = 100_000, random.Random(1)
  seen = Seen(recent=1024)
  tracemalloc.start()
  for _ in range(count):
    seen.add(draw.getrandbits(64))
  now, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  constant = 1 << 20  # of the Python set
  assert now < 8 * count + constant
  assert peak < 16 * count + constant

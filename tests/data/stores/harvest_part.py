"""One of several processes that fill one store.

    python harvest_part.py FOLDER PART PARTS [SHARDS]

With SHARDS, it is killed by SIGKILL once it has finished that many shards.
Prints "finished" at the end.
"""

import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import tiny_gemma  # noqa: E402

from gemmascope_jax.data.stores.harvest import harvest  # noqa: E402
from gemmascope_jax.data.stores.shard_writing import _OpenShard  # noqa: E402

SITES = ("res.0", "att.0")  # one layer: compiles faster


def main(root: str, part: str, parts: str, shards: str | None = None) -> None:
  finish, left = _OpenShard.finish, int(shards or 10**9)

  def finish_and_die(shard):
    nonlocal left
    finish(shard)
    left -= 1
    if not left:
      os.kill(os.getpid(), signal.SIGKILL)

  _OpenShard.finish = finish_and_die
  harvest(
    tiny_gemma.lm(),
    tiny_gemma.windows(),
    SITES,
    root,
    tiny_gemma.POLICY,
    part=(int(part), int(parts)),
    patience_s=60,
    **tiny_gemma.OPTIONS,
  )
  print("finished", flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])

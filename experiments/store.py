"""What a store is, and whether it still is what it was.

python -m experiments.store inspect runs/quickstart/store/NAME
python -m experiments.store inspect gs://bucket/NAME --json
python -m experiments.store verify runs/quickstart/store/NAME --set_aside

`inspect` prints the manifest's facts; `verify` reads every byte, compares every
checksum and names what is bad. Training compares a check of every row that it
reads, so it needs no `verify` before it. Exit status: 0, or 1 for damage or an
error.
"""

import json
import sys

from absl import app, flags

from gemmascope_jax.data.stores import store, store_checking, store_summary

_JSON = flags.DEFINE_bool("json", False, "inspect: print JSON.")
_SET_ASIDE = flags.DEFINE_bool(
  "set_aside",
  False,
  "verify: rename bad files to *.bad, so that the same harvest makes them, and"
  " only them, again.",
)


def main(argv: list[str]) -> None:
  """Runs one command on one or more stores."""
  if len(argv) < 3 or argv[1] not in ("inspect", "verify"):
    raise app.UsageError(
      "expected: inspect PATH ... [--json] or verify PATH ..."
    )
  try:
    command = {"inspect": inspect, "verify": verify}[argv[1]]
    good = [command(store.Store.open(path)) for path in argv[2:]]
  except (ValueError, OSError, ImportError) as error:  # they explain themselves
    sys.exit(f"error: {error}")
  if not all(good):
    sys.exit(1)


def inspect(opened: store.Store) -> bool:
  """Prints what the store is."""
  said = store_summary.summary(opened)
  print(json.dumps(said) if _JSON.value else store_summary.table(said))
  return True


def verify(opened: store.Store) -> bool:
  """Prints which files are bad, and what to do; whether none is."""
  damage = store_checking.find_damage(opened, progress=True)
  if not damage:
    print(f"{opened.root}: every file is what the manifest says")
    return True
  for name, what in damage:
    print(f"{opened.files.path(name)} {what}")
  if _SET_ASIDE.value:
    for name in store_checking.set_aside(opened, damage):
      print(f"set aside: {opened.files.path(name)}")
    print("Run the same harvest again: it makes what is missing, and only that")
  else:
    print(
      "Run this again with --set_aside, then the same harvest again: it makes"
      " those files, and only those"
    )
  return False


if __name__ == "__main__":
  app.run(main)

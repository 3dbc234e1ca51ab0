"""A run's finished SAEs -> a folder to publish, that says what it is.

python -m experiments.release --run=runs/quickstart --out=releases/mine \\
  --licence=cc-by-4.0
python -m experiments.release --run=runs/zoo --member='res/*' --out=releases/res
python -m experiments.release verify releases/mine --lm=demo
python -m experiments.release push releases/mine --push=USER/NAME --dry_run

The first command goes on where it was stopped, and --push=USER/NAME uploads
what it wrote as well. Exit status of `verify`: 0, or 1 if a file, the README, L0
or FVU is not as the index and the cards say; losses are not measured again.
"""

import pathlib
import sys

from absl import flags

from configs import default
from experiments import _binary
from gemmascope_jax import releases
from gemmascope_jax.experiment import (
  release_checking,
  releasing,
  stored_config,
)
from gemmascope_jax.releases import push

_RUN = flags.DEFINE_string(
  "run", "", "Work directory of the run, or of several."
)
_OUT = flags.DEFINE_string("out", "", "Folder of the release.")
_MEMBER = flags.DEFINE_multi_string(
  "member", [], "Only these SAEs: names or patterns, such as 'res/*'."
)
_FORMAT = flags.DEFINE_string(
  "format", "gemma_scope", f"Of the weights: {', '.join(releases.FORMATS)}."
)
_LICENCE = flags.DEFINE_string(
  "licence", "", "Of the weights, as the Hub spells it: cc-by-4.0, ..."
)
_PUSH = flags.DEFINE_string("push", "", "Upload to this repository, USER/NAME.")
_PUBLIC = flags.DEFINE_bool("public", False, "Make a new repository public.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Say what would be uploaded.")
_LM = flags.DEFINE_string("lm", "", "verify: the language model's source.")
_DELTA = flags.DEFINE_string("delta", "", "verify: of a fine-tune, its folder.")
_TEXT = flags.DEFINE_list("text", [], "verify: texts to measure on.")
_SEQUENCES = flags.DEFINE_integer("sequences", 0, "verify: so many; 0: all.")


def main(config, arguments) -> None:
  """Makes, verifies or uploads a release."""
  command, *paths = arguments or ["make"]
  _refuse_unused(command)
  if command == "make" and not paths:
    make(config)
  elif command in ("verify", "push") and len(paths) == 1:
    {"verify": verify, "push": upload}[command](paths[0])
  else:
    raise ValueError(
      f"{' '.join(arguments)}: expected --run=RUN --out=FOLDER, or verify"
      " FOLDER, or push FOLDER --push=USER/NAME"
    )


def _refuse_unused(command: str) -> None:
  """Names a flag that would do nothing under this command."""
  if command != "verify":
    _binary.refuse("without verify", _LM, _DELTA, _TEXT, _SEQUENCES)
  if command in ("verify", "push"):
    _binary.refuse(f"with {command}", _RUN, _OUT, _MEMBER, _FORMAT, _LICENCE)
  if command == "verify":
    _binary.refuse("with verify", _PUSH, _PUBLIC, _DRY_RUN)
  if not _PUSH.value:
    _binary.refuse("without --push", _PUBLIC, _DRY_RUN)


def make(config) -> None:
  """Writes a release, says what is in it, and uploads it if asked to."""
  if not _OUT.value or not (_RUN.value or config):
    raise ValueError("expected --run=RUN (or --config=FILE) and --out=FOLDER")
  if config is None:
    config = stored_config.read(_RUN.value, default.get_config())
  elif _RUN.value:
    config.workdir = _RUN.value
  found = releasing.release(
    config,
    _OUT.value,
    wanted=_MEMBER.value,
    format=_FORMAT.value,
    licence=_LICENCE.value,
  )
  for place, card in found["cards"].items():
    print(f"{place}  {releasing.line(card)}")
  if found["left_out"]:
    print(
      "Left out, of another language model or other text:"
      f" {', '.join(found['left_out'])}. Give these a release of their own, with"
      " --member and --out."
    )
  count = len(found["cards"])
  print(f"{count} SAEs; losses of {found['reused']} from the run's results")
  print(f"Look: {pathlib.Path(_OUT.value, 'README.md')}")
  if _PUSH.value:
    upload(_OUT.value)


def verify(path: str) -> None:
  """Prints what was found; exits with 1 unless all is as the cards say."""
  lines = release_checking.verify(
    path,
    lm=_LM.value,
    delta=_DELTA.value,
    texts=_TEXT.value,
    sequences=_SEQUENCES.value,
  )
  for line in lines:
    print(line)
  wrong = sum(not line.ok for line in lines)
  if wrong:
    sys.exit(f"{path}: {wrong} of {len(lines)} lines are not as they should be")
  print(
    f"{path}: files as indexed, README as its cards give, L0 and FVU as its"
    " cards say. Not measured again: losses, and latents that are silent or"
    " dead; the hashes don't say who made the release"
  )


def upload(path: str) -> None:
  """Uploads a release, or says what would go."""
  found = push.push(
    path, _PUSH.value, public=_PUBLIC.value, dry_run=_DRY_RUN.value
  )
  for name, size in sorted(found["files"].items()):
    print(f"  {size:>13,}  {name}")
  total = sum(found["files"].values())
  print(
    f"{len(found['files'])} files, {total:,} bytes,"
    f" {'would go' if _DRY_RUN.value else 'are now'} at {found['repo']}"
    f" ({'public' if _PUBLIC.value else 'private, if it is new'})"
  )
  if found["url"]:
    print(found["url"])


if __name__ == "__main__":
  _binary.run_commands(main)

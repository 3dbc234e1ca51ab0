"""SHA-256 of files, to compare: pytest's diff of megabytes takes for ever."""

import pathlib

from gemmascope_jax.artifacts import sha256_file


def digests(
  root: pathlib.Path | str, folder: str = ".", pattern: str = "*"
) -> dict[str, str]:
  """Of every file below a folder of `root`, by its path from `root`."""
  root = pathlib.Path(root)
  return {
    path.relative_to(root).as_posix(): sha256_file(path)
    for path in sorted((root / folder).rglob(pattern))
    if path.is_file()
  }

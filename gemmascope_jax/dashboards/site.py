"""The folder of pages: a list of latents, and one view of each.

    index.html  page.css  page.js     the same for every SAE
    data/index.js                     the SAE, and of each latent what the list
                                      and the search need
    data/00000.js ...                 everything else, `PER_CHUNK` latents each,
                                      read when one of them is opened

Data are scripts that call `dashboard.index` or `dashboard.chunk`, as a page that
is opened from a disk may not fetch files. They hold JSON in ASCII and nothing
else; the page puts text into the document as text nodes only.

Files are written beside the folder first, which then replaces it, so a folder is
either the old one or the new one.
"""

from __future__ import annotations

import importlib.resources
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gemmascope_jax import artifacts

PER_CHUNK = 32
ASSETS = ("index.html", "page.css", "page.js")
_BRIEF = 4  # words of a latent in the list
_MARK = "data/index.js"


def write(
  out: str | os.PathLike,
  sae: Mapping[str, Any],
  latents: Iterable[Mapping[str, Any]],
  *,
  explanations: Mapping[int, Mapping[str, Any]] | None = None,
  viewer: str | None = None,
) -> pathlib.Path:
  """Writes the pages.

  Args:
    out: the folder; one that holds pages is replaced.
    sae: {"name", "facts", "about", "fidelity", "measured_on", "made_of"}: two
      lines of text; rows [name, value] of text; rows [name, {"mean", "stderr"},
      what it says]; text; rows.
    latents: of `studies.latents.details`, each with "by_direction" and
      "by_firing", lists of [latent, score, its words]; taken one by one.
    explanations: {"explanation", "score"} of some latents; score: None.
    viewer: address of a latent's page elsewhere, "{}" in the latent's place.

  Returns:
    The page to open.

  Raises:
    FileExistsError: the folder is there and holds something else.
    ValueError: no latents, an explanation of a latent that is not there, or an
      address that is no web address of every latent.
  """
  out = pathlib.Path(out)
  check_folder(out)
  check_viewer(viewer)
  explained = dict(explanations or {})
  new = out.with_name(f".{out.name}.new")
  shutil.rmtree(new, ignore_errors=True)
  briefs, chunk, number = [], [], 0
  for latent in latents:
    briefs.append(_brief(latent, explained.pop(latent["index"], None)))
    chunk.append(latent)
    if len(chunk) == PER_CHUNK:
      _script(new / f"data/{number:05d}.js", "chunk", number, chunk)
      chunk, number = [], number + 1
  if chunk:
    _script(new / f"data/{number:05d}.js", "chunk", number, chunk)
  if not briefs:
    raise ValueError("no latents to show: expected at least one")
  if explained:
    raise ValueError(
      f"an explanation of latent {min(explained)}, which is not shown"
    )
  index = {
    "sae": dict(sae),
    "latents": briefs,
    "per_chunk": PER_CHUNK,
    "explained": any(brief["explanation"] for brief in briefs),
    "viewer": viewer,
    "live": False,  # a server with a model says otherwise, see `live`
  }
  _script(new / _MARK, "index", index)
  assets = importlib.resources.files(__package__) / "assets"
  for name in ASSETS:
    artifacts.write_bytes(new / name, (assets / name).read_bytes())
  if out.exists():
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    out.rename(old)
    new.rename(out)
    shutil.rmtree(old)
  else:
    new.rename(out)
  return out / "index.html"


def check_viewer(viewer: str | None) -> None:
  """Raises `ValueError` for what is no web address of every latent."""
  if viewer is None:
    return
  if not viewer.startswith(("https://", "http://")) or "{}" not in viewer:
    raise ValueError(
      f"viewer {viewer!r}: expected an address that begins with https://, with"
      " {} where the latent's number goes"
    )


def check_folder(out: str | os.PathLike) -> None:
  """Refuses to replace a folder that holds something else than pages.

  Raises:
    FileExistsError: it does.
  """
  out = pathlib.Path(out)
  if not out.exists():
    return
  if not out.is_dir() or (any(out.iterdir()) and not (out / _MARK).exists()):
    raise FileExistsError(
      f"{out} is there and holds no pages of ours: name another folder, or"
      " remove it"
    )


def _brief(latent, explanation) -> dict[str, Any]:
  """What the list and the search need of a latent."""
  given = explanation or {}
  means = [mean for _, mean in latent["top_tokens"][:_BRIEF]]
  return {
    "index": latent["index"],
    "frequency": latent["frequency"],
    "max": latent["max"],
    "top_tokens": [piece for piece, _ in latent["top_tokens"][:_BRIEF]],
    "promotes": [piece for piece, _ in latent["top_logits"][:_BRIEF]],
    "explanation": given.get("explanation") or "",
    "score": given.get("score"),
    "focus": _focus(latent, means),
  }


def _focus(latent, means) -> float:
  """How reliably its words, and little else, make it fire at its strongest."""
  if not means or not latent["max"] > 0:
    return 0.0
  strong = sum(means) / (len(means) * latent["max"])
  # That ten tokens at random are all silent: what fires often is not clear.
  return strong * (1 - latent["frequency"]) ** 10


def _script(path: pathlib.Path, call: str, *values: Any) -> None:
  artifacts.write_text(path, script(call, *values))


def script(call: str, *values: Any) -> str:
  """A script of one call; ASCII, so that no encoding can change it."""
  said = ",".join(
    json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    for value in values
  )
  return f"dashboard.{call}({said});\n"


def _finite(value: Any) -> Any:
  """With None for what is no number, and numbers to six digits."""
  if isinstance(value, dict):
    return {key: _finite(each) for key, each in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(each) for each in value]
  if isinstance(value, float):
    return float(f"{value:.6g}") if math.isfinite(value) else None
  return value


def read_index(folder: str | os.PathLike) -> dict[str, Any]:
  """What `data/index.js` of a folder of pages holds.

  Raises:
    FileNotFoundError: no pages there.
  """
  path = pathlib.Path(folder) / _MARK
  if not path.exists():
    raise FileNotFoundError(
      f"no pages at {folder}: expected a folder that experiments.dashboard"
      f" wrote, with {_MARK}"
    )
  return _said(path)[0]


def read_latents(folder: str | os.PathLike) -> Iterator[dict[str, Any]]:
  """Everything that a folder of pages holds of its latents, in order."""
  count = len(read_index(folder)["latents"])
  for number in range(math.ceil(count / PER_CHUNK)):
    yield from _said(pathlib.Path(folder) / f"data/{number:05d}.js")[1]


def _said(path: pathlib.Path) -> list[Any]:
  """The values of a script's call."""
  text = path.read_text(encoding="ascii").rstrip()
  _, _, values = text.removesuffix(");").partition("(")
  return json.loads(f"[{values}]")

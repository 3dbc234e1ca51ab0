"""Models by their id on the Hugging Face Hub: only the files that are needed."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Iterator, Sequence

from gemmascope_jax import artifacts, cache
from gemmascope_jax.gemma.weights import huggingface, layout
from gemmascope_jax.gemma.weights.errors import (
  GatedModelError,
  WeightsFormatError,
  WeightsNotFoundError,
)
from gemmascope_jax.gemma.weights.source import Weights

# The names of presets, and the Hub's ids for them.
ALIASES = {
  **{
    f"gemma-2-{size}{kind}": f"google/gemma-2-{size}{kind}"
    for size in ("2b", "9b", "27b")
    for kind in ("", "-it")
  },
  "gemma-3-270m": "google/gemma-3-270m",
  "gemma-3-270m-it": "google/gemma-3-270m-it",
  **{
    f"gemma-3-{size}{ours}": f"google/gemma-3-{size}{theirs}"
    for size in ("1b", "4b", "12b", "27b")
    for ours, theirs in (("", "-pt"), ("-it", "-it"))
  },
}

_TOKENIZER = (
  "tokenizer.json",
  "tokenizer_config.json",
  "tokenizer.model",
)
_ID = re.compile(r"[\w.-]+/[\w.-]+")


def parse(source: str) -> tuple[str, str | None] | None:
  """Reads "id", "id@revision" or an alias of either.

  Returns:
    Id and revision (None: the newest), or None if it can't be an id.
  """
  name, _, revision = source.partition("@")
  name = ALIASES.get(name, name)
  return (name, revision or None) if _ID.fullmatch(name) else None


def open_id(
  repo: str, revision: str | None = None, num_layers: int | None = None
) -> Weights:
  """Downloads what is needed of a model, or finds it in the Hub's cache.

  Args:
    repo: such as "google/gemma-2-2b".
    revision: branch, tag or commit; None: the newest, or offline the newest
      that is in the cache.
    num_layers: only the files that hold layers 0..num_layers-1, the embedding
      and the final norm; None: all layers.

  Raises:
    GatedModelError: the licence was not accepted, or the account not given.
    WeightsNotFoundError: no such model, or the Hub can't be reached and the
      files are not in its cache.
  """
  place = _Place(repo, revision, offline=_unreachable(repo, revision))
  folder = _get(place, huggingface.CONFIG).parent
  if folder.parent.name == "snapshots":
    # The cache keeps a commit's files in a folder of its name: what comes next
    # is of the same commit, even if somebody pushes meanwhile.
    place = dataclasses.replace(place, revision=folder.name)
  config = huggingface.read_config(folder, repo)
  index = _get(place, huggingface.INDEX, optional=True)
  if index is None:
    _get(place, huggingface.SINGLE)
  else:
    where = huggingface.read_index(index)
    prefix = huggingface.find_prefix(where) or ""
    count = config.num_layers if num_layers is None else num_layers
    names = [
      huggingface.tensor_name(path, prefix)
      for path in layout.leaves(config, count)
    ]
    for file in sorted({where[name] for name in names if name in where}):
      _get(place, file)
  for file in _TOKENIZER:
    _get(place, file, optional=True)
  name = repo if revision is None else f"{repo}@{revision}"
  weights = huggingface.open_folder(
    folder, name=repo, hash_files=lambda files: _hashes(place, files)
  )
  return dataclasses.replace(weights, label=name)


@dataclasses.dataclass(frozen=True)
class _Place:
  """A repository at one revision.

  Attributes:
    repo: its id.
    revision: branch, tag or commit; None: the newest.
    offline: why the Hub can't be reached; None if it can.
  """

  repo: str
  revision: str | None
  offline: str | None = None


def _unreachable(repo: str, revision: str | None) -> str | None:
  """Why the Hub can't be reached; None if it can, or need not be.

  Without this question each file, in the cache or not, would wait for half a
  minute of the client's retries where there is no network.
  """
  import huggingface_hub
  from huggingface_hub import errors

  cached = huggingface_hub.try_to_load_from_cache(
    repo, huggingface.CONFIG, revision=revision
  )
  if isinstance(cached, str) and re.fullmatch("[0-9a-f]{40}", revision or ""):
    return None
  with _explained(_Place(repo, revision)):
    try:
      huggingface_hub.model_info(repo, revision=revision, timeout=10)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
      raise
    except Exception as error:  # of whichever HTTP library the client uses
      return _first_line(error)
  return None


def _first_line(error: Exception) -> str:
  """What happened, without the client's advice; some errors say nothing."""
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__


def _get(
  place: _Place, file: str, optional: bool = False
) -> pathlib.Path | None:
  """The file on disk, downloaded if need be; None if optional and absent."""
  import huggingface_hub
  from huggingface_hub import errors

  with _explained(place):
    try:
      return pathlib.Path(
        huggingface_hub.hf_hub_download(
          place.repo,
          file,
          revision=place.revision,
          local_files_only=place.offline is not None,
        )
      )
    except errors.EntryNotFoundError as error:
      # Offline, an absent file can't be told from one not yet downloaded.
      if optional:
        return None
      if isinstance(error, errors.LocalEntryNotFoundError):
        raise
      raise WeightsNotFoundError(
        f"weights not found: {place.repo} has no {file}; expected a model in"
        " Hugging Face's format with safetensors"
      ) from error


def _hashes(place: _Place, files: Sequence[str]) -> list[str]:
  """SHA-256s of files, downloaded or not."""
  import huggingface_hub

  hashes = []
  for file in files:
    path = huggingface_hub.try_to_load_from_cache(
      place.repo, file, revision=place.revision
    )
    if isinstance(path, str):
      hashes.append(huggingface.blob_hash(pathlib.Path(path)))
      continue
    record = cache.folder("hub") / (
      artifacts.fingerprint([place.repo, place.revision, file]) + ".json"
    )
    if not record.is_file():
      url = huggingface_hub.hf_hub_url(
        place.repo, file, revision=place.revision
      )
      with _explained(place):
        etag = huggingface_hub.get_hf_file_metadata(url).etag
      if not re.fullmatch("[0-9a-f]{64}", etag or ""):
        raise WeightsFormatError(
          f"{url}: the Hub gives no SHA-256 for this file (etag {etag!r})"
        )
      artifacts.write_json(record, {"url": url, "sha256": etag})
    hashes.append(artifacts.read_json(record)["sha256"])
  return hashes


@contextlib.contextmanager
def _explained(place: _Place) -> Iterator[None]:
  """Turns the Hub client's errors into ours, which say what to do."""
  from huggingface_hub import errors

  repo, page = place.repo, f"https://huggingface.co/{place.repo}"
  steps = (
    f"To get access: accept the licence at {page}, log in with `hf auth login`"
    " (or set HF_TOKEN), and run the same command again. Or download the model"
    " by other means (Kaggle has it too) and pass its folder as the source."
  )
  try:
    yield
  except errors.GatedRepoError as error:
    raise GatedModelError(
      f"weights not found: {repo} is only for those who accepted its licence."
      f" {steps}"
    ) from error
  except errors.RevisionNotFoundError as error:
    raise WeightsNotFoundError(
      f"weights not found: {repo} has no revision {place.revision!r}; see"
      f" {page}/commits/main"
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise WeightsNotFoundError(
      f"weights not found: the Hub has no model {repo}, or it is private (and"
      f" there is no folder {repo} here). {steps}"
    ) from error
  except (
    errors.LocalEntryNotFoundError,
    errors.OfflineModeIsEnabled,
    errors.HfHubHTTPError,
  ) as error:
    status = getattr(getattr(error, "response", None), "status_code", None)
    kind = GatedModelError if status in (401, 403) else WeightsNotFoundError
    reason = place.offline or _first_line(error)
    raise kind(
      f"weights not found: {repo} is not (wholly) in the local cache, and the"
      f" Hub did not give it ({reason}). {steps}"
    ) from error

"""SAEs by their address on the Hugging Face Hub: fetched once, pinned, named.

  google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71
  google/gemma-scope-2b-pt-res/layer_20/width_16k/canonical
  google/gemma-scope-2b-pt-res/layer_20/width_16k/nearest_l0_50
  hf://OWNER/REPOSITORY/FOLDER, and any of them as OWNER/REPOSITORY@REVISION/...

Gemma Scope's repositories need no `hf://`. Without a revision it is the newest,
or, where the Hub cannot be reached, the newest in its cache. Whatever was asked
for, what is fetched is of one commit, and that commit stands in the SAE's
provenance: the address with `@COMMIT` gives the same SAE for ever.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Iterator

from jax.sharding import Mesh

from gemmascope_jax import artifacts
from gemmascope_jax.releases import catalogue, choice, formats, names
from gemmascope_jax.sae.sae import SAE

PREFIX = "hf://"
_ADDRESS = re.compile(
  r"(?P<owner>[\w.-]+)/(?P<repo>[\w.-]+)(@(?P<revision>[\w.-]+))?"
  r"(/(?P<folder>.+?))?/?"
)
_COMMIT = re.compile("[0-9a-f]{40}")
# What an SAE's folder may hold that is read.
_FILES = (
  *("*.npz", "*.safetensors", "*.pt"),
  *("cfg.json", "config.json", "config.yaml", "*sae.json"),
)
_UNREAD = "examples.safetensors"


class ReleaseNotFoundError(FileNotFoundError):
  """The Hub has no such SAE, or did not give it; the message says which."""


@dataclasses.dataclass(frozen=True)
class Address:
  """Where an SAE is on the Hub.

  Attributes:
    repo: such as "google/gemma-scope-2b-pt-res".
    folder: in it; "" for its root.
    revision: branch, tag or commit; None: the newest.
  """

  repo: str
  folder: str
  revision: str | None = None

  def __str__(self) -> str:
    revision = "" if self.revision is None else f"@{self.revision}"
    return f"{self.repo}{revision}{f'/{self.folder}' if self.folder else ''}"


def parse(text: str) -> Address | None:
  """Reads an address; None if it can be nothing but a local path.

  Raises:
    ValueError: "hf://" and no address after it; a folder that leads out of the
      repository.
  """
  explicit = text.startswith(PREFIX)
  found = _ADDRESS.fullmatch(text.removeprefix(PREFIX))
  if found is None:
    if not explicit:
      return None
    raise ValueError(
      f"{text!r} is no address on the Hub: expected hf://OWNER/REPOSITORY/FOLDER"
    )
  repo = f"{found['owner']}/{found['repo']}"
  if not (explicit or names.is_repo(repo)):
    return None
  folder = (found["folder"] or "").strip("/")
  if any(part in ("..", ".", "") for part in folder.split("/")) and folder:
    raise ValueError(f"{text!r}: the folder leads out of the repository")
  return Address(repo, folder, found["revision"])


def load(
  address: Address, member: int | str | None = None, mesh: Mesh | None = None
) -> SAE:
  """Fetches an SAE, or finds it in the Hub's cache, and loads it.

  Args:
    address: see `parse`; the folder may end in "canonical" or "nearest_l0_N".
    member: of a folder of several layers, the layer; see `gs.sae.load`.
    mesh: devices to load it onto; None: NumPy arrays.

  Returns:
    The SAE; its provenance has "hub": repository, commit and folder.

  Raises:
    ReleaseNotFoundError: the Hub has no such thing, or cannot be reached and
      the cache does not have it.
    ValueError: what is there is no SAE that we can represent.
  """
  offline, commit = _resolve(address)
  at = dataclasses.replace(address, revision=commit or address.revision)
  at = dataclasses.replace(at, folder=_chosen(at, offline))
  root = _fetch(at, member, offline)
  sae = formats.load(root / at.folder, member, mesh)
  if sae is None:
    raise ReleaseNotFoundError(
      f"{at}: there is no SAE in this folder"
      + (
        f" of the cache, and the Hub did not answer ({offline})"
        if offline
        else ""
      )
      + f"; see https://huggingface.co/{at.repo}/tree/main"
    )
  where = {"repo": at.repo, "revision": root.name, "folder": at.folder}
  provenance = artifacts.canonical_json(sae.config.details() | {"hub": where})
  config = dataclasses.replace(sae.config, provenance=provenance)
  return sae.replace(config=config)


def _resolve(address: Address) -> tuple[str | None, str | None]:
  """(why the Hub cannot be reached, or None; the commit, or None)."""
  import huggingface_hub
  from huggingface_hub import errors

  if _COMMIT.fullmatch(address.revision or ""):
    cached = _cached(address)
    if cached is not None and (cached / address.folder).is_dir():
      return "not asked, as the commit is in the cache", address.revision
  with _explained(address):
    try:
      info = huggingface_hub.model_info(
        address.repo, revision=address.revision, timeout=10
      )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
      raise
    except Exception as error:  # of whichever HTTP library the client uses
      lines = str(error).strip().splitlines() or [type(error).__name__]
      return lines[0], None
  return None, info.sha


def _cached(address: Address) -> pathlib.Path | None:
  """The cache's folder of a revision, whatever of it is there."""
  import huggingface_hub
  from huggingface_hub import errors

  try:
    found = huggingface_hub.snapshot_download(
      address.repo, revision=address.revision, local_files_only=True
    )
  except (errors.LocalEntryNotFoundError, FileNotFoundError):
    return None
  return pathlib.Path(found)


def _fetch(at: Address, member, offline: str | None) -> pathlib.Path:
  """The folder of a commit in the cache, with the SAE's files in it."""
  import huggingface_hub

  if offline is not None:
    cached = _cached(at)
    if cached is None or not (cached / at.folder).is_dir():
      raise ReleaseNotFoundError(
        f"{at} is not in the Hub's cache, and the Hub did not give it"
        f" ({offline}): connect, or download the folder by other means and load"
        " it by its path"
      )
    return cached
  below = f"{at.folder}/" if at.folder else ""
  patterns = [f"{below}{pattern}" for pattern in _FILES]
  with _explained(at):
    root = huggingface_hub.snapshot_download(
      at.repo,
      revision=at.revision,
      allow_patterns=patterns,
      # A pattern's * reaches into folders below.
      ignore_patterns=[f"{below}{_UNREAD}", f"{below}*/*"],
    )
  return pathlib.Path(root)


def _chosen(at: Address, offline: str | None) -> str:
  """The folder, once `canonical` or `nearest_l0_N` is chosen."""
  asked = choice.parse(at.folder)
  if asked is None:
    return at.folder
  found = choice.choose(
    asked, _folders(at, asked.place, offline), f"{at.repo}/"
  )
  if found is None:
    known = at.repo in catalogue.repos()
    raise ReleaseNotFoundError(
      f"{at}: {at.repo} has no {asked.place}/average_l0_N"
      + (f"; it has {catalogue.held(at.repo)}" if known else "")
    )
  return found


def _folders(at: Address, place: str, offline: str | None) -> list[str]:
  """Names of what is in a folder: as the Hub lists it; offline, our list."""
  import huggingface_hub
  from huggingface_hub import errors

  if offline is not None:
    if at.repo not in catalogue.repos():
      raise ReleaseNotFoundError(
        f"{at}: which SAEs are there only the Hub can say, and it cannot be"
        f" reached ({offline}): name the folder"
      )
    listed = [name.folder for name in catalogue.find(at.repo)]
    found = [name for name in listed if name.startswith(f"{place}/")]
  else:
    with _explained(at):
      try:
        entries = huggingface_hub.HfApi().list_repo_tree(
          at.repo, place, revision=at.revision
        )
        found = [entry.path for entry in entries]
      except errors.EntryNotFoundError:
        found = []
  return [name.split("/")[-1] for name in found]


@contextlib.contextmanager
def _explained(address: Address) -> Iterator[None]:
  """Turns the Hub client's errors into ours."""
  from huggingface_hub import errors

  page = f"https://huggingface.co/{address.repo}"
  try:
    yield
  except errors.RevisionNotFoundError as error:
    raise ReleaseNotFoundError(
      f"{address}: {address.repo} has no revision {address.revision!r}; see"
      f" {page}/commits/main"
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise ReleaseNotFoundError(
      f"{address}: the Hub has no model {address.repo}, or it is private or"
      " gated (then log in with `hf auth login`, or set HF_TOKEN)"
    ) from error
  except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    raise ReleaseNotFoundError(
      f"{address}: the Hub did not give it ({lines[0]}); see {page}"
    ) from error

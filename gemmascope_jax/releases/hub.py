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
from gemmascope_jax.releases import (
  catalogue,
  choice,
  circuit_tracer,
  formats,
  names,
)
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
  if found := _pinned(address, member, mesh):
    return found
  offline, commit = _resolve(address)
  at = dataclasses.replace(address, revision=commit or address.revision)
  folder = _chosen(at, offline)
  at = dataclasses.replace(at, folder=folder)
  if offline is None:
    # By the name that was asked for, which the cache then knows as this commit.
    asked = dataclasses.replace(address, folder=folder)
    root = _fetch(asked, _ignored(at, member))
  else:
    root = _cached(at)
    if root is None or not (root / folder).is_dir():
      raise ReleaseNotFoundError(
        f"{at} is not in the Hub's cache, and the Hub did not give it"
        f" ({offline}): connect, or download the folder by other means and load"
        " it by its path"
      )
  sae = formats.load(root / folder, member, mesh)
  if sae is None:
    where = f" of the cache, and the Hub did not answer ({offline})"
    raise ReleaseNotFoundError(
      f"{at}: there is no SAE in this folder{where if offline else ''}; see"
      f" https://huggingface.co/{at.repo}/tree/main"
    )
  return _named(sae, at, root)


def _named(sae: SAE, at: Address, root: pathlib.Path) -> SAE:
  """With the commit that it is of, whose name the cache's folder has."""
  where = {"repo": at.repo, "revision": root.name, "folder": at.folder}
  provenance = artifacts.canonical_json(sae.config.details() | {"hub": where})
  config = dataclasses.replace(sae.config, provenance=provenance)
  return sae.replace(config=config)


def _pinned(address: Address, member, mesh) -> SAE | None:
  """Of a commit that is in the cache, without asking the Hub; None: it isn't."""
  if not _COMMIT.fullmatch(address.revision or ""):
    return None
  root = _cached(address)
  if root is None or not (root / address.folder).is_dir():
    return None
  try:
    sae = formats.load(root / address.folder, member, mesh)
  except (FileNotFoundError, ValueError):
    return None  # maybe fetching it was cut short
  return None if sae is None else _named(sae, address, root)


def _resolve(address: Address) -> tuple[str | None, str | None]:
  """(why the Hub cannot be reached, or None; the commit, or None)."""
  import huggingface_hub
  from huggingface_hub import errors

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
  except errors.LocalEntryNotFoundError as error:
    # Newer clients say so if it is not all there, which it need not be.
    found = getattr(error, "snapshot_path", None)
  return None if found is None else pathlib.Path(found)


def _fetch(at: Address, ignored: list[str]) -> pathlib.Path:
  """The folder of a commit in the cache, with the SAE's files in it."""
  import huggingface_hub

  below = f"{at.folder}/" if at.folder else ""
  with _explained(at):
    root = huggingface_hub.snapshot_download(
      at.repo,
      revision=at.revision,
      allow_patterns=[f"{below}{pattern}" for pattern in _FILES],
      # A pattern's * reaches into folders below.
      ignore_patterns=[f"{below}{_UNREAD}", f"{below}*/*", *ignored],
    )
  return pathlib.Path(root)


def _ignored(at: Address, member: int | str | None) -> list[str]:
  """Files of other layers, where one is asked for and each has its own."""
  if member is None:
    return []
  below = f"{at.folder}/" if at.folder else ""
  return [
    f"{below}{name}"
    for name in _names(at, at.folder, None)
    if circuit_tracer.layer_of(name) not in (None, member)
  ]


def _chosen(at: Address, offline: str | None) -> str:
  """The folder, once `canonical` or `nearest_l0_N` is chosen."""
  asked = choice.parse(at.folder)
  if asked is None:
    return at.folder
  found = choice.choose(asked, _names(at, asked.place, offline), f"{at.repo}/")
  if found is None:
    known = at.repo in catalogue.repos()
    raise ReleaseNotFoundError(
      f"{at}: {at.repo} has no {asked.place}/average_l0_N"
      + (f"; it has {catalogue.held(at.repo)}" if known else "")
    )
  return found


def _names(at: Address, place: str, offline: str | None) -> list[str]:
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
          at.repo, place or None, revision=at.revision
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

"""A release to a repository on the Hugging Face Hub."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

from gemmascope_jax.releases import folder

_SAES = "*layer_*/width_*/average_l0_*"
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def push(
  root: str | os.PathLike,
  repo: str,
  *,
  public: bool = False,
  dry_run: bool = False,
  endpoint: str | None = None,
) -> dict[str, Any]:
  """Uploads a release that is whole, in one commit.

  The token is `HF_TOKEN`'s, or that of `hf auth login`. Folders of SAEs that the
  repository has and this release has not are removed; its other files stay.
  Uploads are by content: what is there already does not travel again.

  Args:
    root: the release.
    repo: "user/name"; made if need be.
    public: whether a new repository can be read by everybody.
    dry_run: say what would go, and send nothing.
    endpoint: of the Hub; None: the usual.

  Returns:
    {"repo", "files": {name: bytes}, "url" of the commit, or None}.

  Raises:
    FileNotFoundError: no release there.
    ValueError: not a repository's name, or a release that is not whole, or a
      public one without a licence.
    PermissionError: no token, or none that may write there.
    ConnectionError: the Hub can't be reached.
  """
  root = pathlib.Path(root)
  if not _REPO.fullmatch(repo):
    raise ValueError(f"--push={repo}: expected USER/NAME, as on the Hub")
  index = folder.read_index(root)
  damage = folder.damage(root, index)
  if damage:
    name, why = next(iter(damage.items()))
    raise ValueError(
      f"{root} is not whole, so it is not uploaded: {name} {why}"
      f" ({len(damage)} such)"
    )
  if public and not index.get("licence"):
    raise ValueError(
      "--public without a licence: nobody might use what everybody can read;"
      " release again with --licence=cc-by-4.0, say"
    )
  sizes = {name: each["bytes"] for name, each in index["files"].items()}
  sizes[folder.INDEX] = (root / folder.INDEX).stat().st_size
  found = {"repo": repo, "files": sizes, "url": None}
  if not dry_run:
    found["url"] = _upload(root, repo, list(sizes), public, endpoint)
  return found


def _upload(root, repo, names, public, endpoint) -> str:
  import huggingface_hub
  from huggingface_hub import errors

  api = huggingface_hub.HfApi(endpoint=endpoint)
  try:
    api.create_repo(repo, private=not public, exist_ok=True)
    done = api.upload_folder(
      repo_id=repo,
      folder_path=root,
      allow_patterns=names,
      delete_patterns=[_SAES],
      commit_message=f"Release of {len(names)} files",
    )
  except (errors.HfHubHTTPError, errors.LocalTokenNotFoundError) as error:
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = str(error).strip().splitlines()[0]
    if status in (401, 403) or status is None:
      raise PermissionError(
        f"the Hub does not let you write {repo} ({said}): set HF_TOKEN to a"
        " token that may write (https://huggingface.co/settings/tokens), or log"
        " in with `hf auth login`"
      ) from error
    raise ConnectionError(f"the Hub refused {repo}: {said}") from error
  except ValueError:
    raise
  except Exception as error:  # of whichever HTTP library the client uses
    raise ConnectionError(
      f"the Hub can't be reached, nothing was uploaded ({error}); run the same"
      " again"
    ) from error
  return str(done.commit_url)

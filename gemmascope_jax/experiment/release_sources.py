"""Which finished SAEs of a run go into a release, and what they are measured on.

A release is of one language model and one kind of text; a config with several
runs, such as one on a fine-tuned model, gives one release for each.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence

import numpy as np

from gemmascope_jax import artifacts, releases, sae
from gemmascope_jax.experiment import (
  activations,
  bench,
  members,
  runs,
  settings,
)
from gemmascope_jax.experiment.bench import Bench
from gemmascope_jax.experiment.settings import Config
from gemmascope_jax.releases import card, gemma_scope
from gemmascope_jax.sae.load import FINISHED, ORDER
from gemmascope_jax.sae.sae import SAE
from gemmascope_jax.studies.subjects import Subject, by_site, subject


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
  """The SAEs of a release.

  Attributes:
    bench: the model, tokens and SAEs, with the config of their runs.
    left_out: names of SAEs of another model or other text.
    checked: whether the held-out documents were compared with those that were
      trained on.
  """

  bench: Bench
  left_out: list[str]
  checked: bool

  @property
  def subjects(self) -> list[Subject]:
    """The SAEs in the run's order."""
    return self.bench.every()


def choose(
  config: Config, wanted: Sequence[str] = (), format: str = "gemma_scope"
) -> Chosen:
  """The finished SAEs of a config's run or runs.

  Args:
    config: its work directory holds them.
    wanted: names or patterns ("res/*"), of folders or as in tables; none: all.
    format: that they are to be written in; one of `releases.FORMATS`.

  Raises:
    FileNotFoundError: no run, or one of the SAEs has not finished.
    ValueError: a pattern that fits none, SAEs of several models, or one that
      the format cannot hold.
  """
  found = _listed(config)
  for pattern in wanted:
    if not any(_fits(pattern, name, slug) for _, name, slug, _ in found):
      names = ", ".join(name for _, name, _, _ in found)
      raise ValueError(f"--member={pattern}: there is none; there are {names}")
  if wanted:
    found = [
      each
      for each in found
      if any(_fits(pattern, *each[1:3]) for pattern in wanted)
    ]
  groups: dict[str, list] = {}
  for each in found:
    groups.setdefault(_kind(each[0]), []).append(each)
  own = _kind(config)
  if own not in groups and len(groups) == 1:
    own = next(iter(groups))
  others = [each for key, some in groups.items() if key != own for each in some]
  if others and (wanted or own not in groups):
    raise ValueError(
      "a release is of one language model and the same text, but among these are"
      f" SAEs of others: {', '.join(name for _, name, _, _ in others)}; choose"
      " with --member, and give each its own --out"
    )
  mine = groups[own]
  for _, name, _, where in mine:
    if not gemma_scope.is_whole(where):
      raise FileNotFoundError(
        f"{name} of {config.workdir} has not finished, or its files were"
        " changed: run `python -m experiments.train` with the same --config"
        " first, or choose others with --member"
      )
  subjects = [
    subject(_publishable(where, name, format), name)
    for _, name, _, where in mine
  ]
  bench, checked = _bench(config, mine[0][0], subjects)
  return Chosen(bench, [name for _, name, _, _ in others], checked)


def rows(config: Config):
  """The activations that a run was trained on; None if they can't be had."""
  if config.data.source.startswith(activations.SERVERS):
    return None
  try:
    return activations.open_rows(config)
  except FileNotFoundError:
    return None


def _listed(config: Config) -> list[tuple]:
  """(config of the run, name, name by folders, folder) of every member."""
  found = []
  for run_name, one in runs.runs(config).items():
    folder = settings.workdir(one) / members.FOLDER
    if not (folder / ORDER).exists():
      raise FileNotFoundError(
        f"no trained SAEs in {one.workdir}: run `python -m experiments.train`"
        " with the same --config first"
      )
    prefix = f"{run_name}/" if run_name else ""
    for each in artifacts.read_json(folder / ORDER):
      where = folder / FINISHED / each["folder"]
      found.append((one, prefix + each["name"], prefix + each["folder"], where))
  return found


def _publishable(where, name: str, format: str) -> SAE:
  """The SAE of a folder, as it will be read from a release."""
  found = card.publishable(sae.load(where))
  try:
    releases.check(found, format)
  except ValueError as error:
    raise ValueError(
      f"{name}: {error}; choose another --format, or other SAEs with --member"
    ) from error
  return releases.as_read(found, format)


def _fits(pattern: str, name: str, slug: str) -> bool:
  return any(fnmatch.fnmatchcase(each, pattern) for each in (name, slug))


def _kind(config: Config) -> str:
  """Equal for runs whose SAEs may share a release."""
  return artifacts.fingerprint([config.lm.to_dict(), settings.text(config)])


def _bench(config, one, subjects) -> tuple[Bench, bool]:
  """What measures them; the work directory is that of all runs."""
  lm = settings.load_lm(one)
  found, trained_on = rows(one), None
  policy = settings.token_policy(one, lm.tokenizer)
  if found is not None:
    policy, trained_on = found.policy, np.asarray(found.keys)
  for each in subjects:
    each.check(lm, policy)
  tokens = bench.held_out(one, lm, trained_on)
  made = Bench(
    config=one,
    lm=lm,
    policy=policy,
    tokens=tokens,
    subjects=by_site(subjects),
    tuned=[],
    folder=settings.workdir(config) / bench.PARTS,
    rows_store=None,
    untrained={},
    given=True,
  )
  return made, trained_on is not None

"""Explanations and simulations that are kept on disk, one file a latent.

A file's name is the hash of all that determines its content, so that a run that
was killed goes on with the next latent, and another study that asks the same
finds the answer. Where a request got no answer at all (transport) nothing is
kept: the next run asks again.

Letters: C contexts, T tokens in a context.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.studies.interpretability.contexts import Contexts
from gemmascope_jax.studies.interpretability.outcomes import (
  TRANSPORT,
  Explainer,
  Failure,
  Simulator,
)


class Answers:
  """Asks an explainer and a simulator, and keeps what they say.

  Args:
    explainer: see `outcomes`.
    simulator: see `outcomes`.
    folder: for the answers.
  """

  def __init__(
    self,
    explainer: Explainer,
    simulator: Simulator,
    folder: str | os.PathLike,
  ):
    self._explainer, self._simulator = explainer, simulator
    self._folder = pathlib.Path(folder)

  def explanations(
    self,
    shown: Sequence[Contexts],
    group: int = 8,
    tell: Callable[[int], Any] = lambda count: None,
  ) -> list[Any | Failure]:
    """The explanation of each latent, or a failure.

    Args:
      shown: what the explainer sees of each.
      group: latents that it is asked about at once.
      tell: is told how many more are done.

    Raises:
      ValueError: the explainer gave another number of answers.
    """
    about = self._explainer.describe()
    paths = [
      self._path("explanation", [about, contexts.fingerprint()])
      for contexts in shown
    ]
    found = [_read(path) for path in paths]
    tell(sum(answer is not None for answer in found))
    missing = [i for i, answer in enumerate(found) if answer is None]
    for start in range(0, len(missing), group):
      some = missing[start : start + group]
      answers = self._explainer.explain([shown[i] for i in some])
      if len(answers) != len(some):
        raise ValueError(
          f"the explainer {about} gave {len(answers)} answers for {len(some)}"
          " latents"
        )
      for i, answer in zip(some, answers, strict=True):
        found[i] = [answer]
        _write(paths[i], [answer])
      tell(len(some))
    return [answer[0] for answer in found]

  def simulations(
    self, explanation: Any, held_out: Contexts
  ) -> list[np.ndarray | Failure]:
    """Predictions at the counted tokens of each held-out context.

    The simulator is given tokens, not activations.

    Returns:
      For each context float64 [its counted tokens], or a failure.

    Raises:
      ValueError: the simulator gave another number of contexts, another shape
        or a NaN.
    """
    tokens, keep = held_out.tokens, held_out.keep
    about = self._simulator.describe()
    path = self._path(
      "simulation",
      [about, explanation, artifacts.sha256_arrays([tokens, keep])],
    )
    found = _read(path)
    if found is not None:
      return found
    answers = self._simulator.simulate(explanation, tokens, keep)
    if len(answers) != len(tokens):
      raise ValueError(
        f"the simulator {about} gave {len(answers)} predictions for"
        f" {len(tokens)} contexts"
      )
    found = [
      answer if isinstance(answer, Failure) else _checked(answer, kept, about)
      for answer, kept in zip(answers, keep, strict=True)
    ]
    _write(path, found)
    return found

  def _path(self, what: str, determined_by: list) -> pathlib.Path:
    key = artifacts.fingerprint([determined_by, artifacts.code_version()])
    return self._folder / f"{what}_{key}.json"


def _checked(answer: Any, keep: np.ndarray, about: dict) -> np.ndarray:
  values = np.asarray(answer, np.float64)
  if values.shape != keep.shape:
    raise ValueError(
      f"the simulator {about} gave predictions of shape {values.shape} for a"
      f" context of {len(keep)} tokens"
    )
  if not np.isfinite(values[keep]).all():
    raise ValueError(
      f"the simulator {about} predicted NaN or an infinity: an answer that"
      " can't be used is a Failure, which lowers the coverage"
    )
  return values[keep]


def _write(path: pathlib.Path, answers: list) -> None:
  if any(isinstance(a, Failure) and a.kind == TRANSPORT for a in answers):
    return
  rows = [
    {"failure": answer.kind, "detail": answer.detail}
    if isinstance(answer, Failure)
    else {
      "array": isinstance(answer, np.ndarray),
      "answer": answer,
    }
    for answer in answers
  ]
  artifacts.write_text(path, artifacts.canonical_json(rows))


def _read(path: pathlib.Path) -> list | None:
  """What `_write` wrote; None if there is nothing whole to read."""
  try:
    rows = artifacts.read_json(path)
    return [
      Failure(row["failure"], row["detail"])
      if "failure" in row
      else np.asarray(row["answer"], np.float64)
      if row["array"]
      else row["answer"]
      for row in rows
    ]
  except (OSError, ValueError, KeyError, TypeError):
    return None  # asked again: it is a cache

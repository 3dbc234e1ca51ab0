"""DeepMind Mathematics, from the generator that The Pile's subset was made with.

The package `mathematics-dataset` (2019) holds no text: it makes problems. It
is run here with today's numpy and sympy, which takes some repairs of its
source as it is imported; others make a seed give the same text in every
process, which the order of Python's sets does not. The installed files stay as
they are.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import pathlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

_REQUIRES = {"sympy": "sympy", "absl": "absl-py", "six": "six"}

# The Pile's documents of this subset are of 8 KiB, each of one module.
DOCUMENT_CHARACTERS = 8_192
ROUNDS = 2  # documents of each module: about 0.9 million characters in all

_PACKAGE = "mathematics_dataset"
_REPAIRS = {
  f"{_PACKAGE}.sample.polynomials": (
    # Both are gone from numpy.
    ("np.object", "object"),
    ("coeffs.itemset(index, value)", "coeffs[index] = value"),
    (
      "expanded_coefficients.itemset(power, coeffs)",
      "expanded_coefficients[power] = coeffs",
    ),
  ),
  f"{_PACKAGE}.util.composition": (
    ("random.choice(list(allowed))", "random.choice(sorted(allowed))"),
    (
      "entities = set(context.child_entities)",
      "entities = dict.fromkeys(context.child_entities)",
    ),
    ("entities.add(maybe_entity)", "entities[maybe_entity] = None"),
  ),
}


def read(package: pathlib.Path) -> Iterator[str]:
  """The packaged source: `ROUNDS` documents of each of the 56 modules.

  Args:
    package: folder of the installed `mathematics_dataset`.
  """
  return generate(package)


def generate(
  package: pathlib.Path,
  seed: int = 0,
  *,
  rounds: int = ROUNDS,
  characters: int = DOCUMENT_CHARACTERS,
) -> Iterator[str]:
  """Documents of problems, one module each, taking turns.

  A document is lines of questions and answers, as in The Pile, of the
  published training range of difficulty. Each depends on the seed, its module
  and its round only. The state of Python's and numpy's generators is put back
  after each document.

  Args:
    package: folder of the installed `mathematics_dataset`.
    seed: another one gives other problems.
    rounds: documents of each module.
    characters: problems are added until a document has so many.

  Raises:
    ModuleNotFoundError: a package that the generator needs is missing.
    ImportError: it is another version than 1.0.1.
  """
  if rounds < 1 or characters < 1:
    raise ValueError(
      f"rounds {rounds}, characters {characters}: expected at least 1 of each"
    )
  names = tuple(_problems(package.parent))
  return (
    _document(package.parent, name, seed, turn, characters)
    for turn in range(rounds)
    for name in names
  )


# A third of a second each, and the studies of several runs read the same ones.
@functools.lru_cache(maxsize=1024)
def _document(
  folder: pathlib.Path, name: str, seed: int, turn: int, characters: int
) -> str:
  with _randomness(f"{seed} {turn} {name}"):
    return _problem_lines(_problems(folder)[name], characters)


def _problem_lines(problem: Callable[[], Any], characters: int) -> str:
  lines, size = [], 0
  while size < characters:
    try:
      made = problem()
    except ValueError:
      continue  # a draw that can't be made: out of symbols, for one
    lines.append(f"{made.question}\n{made.answer}\n")
    size += len(lines[-1])
  return "".join(lines)


@contextlib.contextmanager
def _randomness(name: str) -> Iterator[None]:
  """The package draws from global generators: seeded here, then restored."""
  import numpy as np
  import sympy.core.random

  digest = hashlib.sha256(name.encode()).digest()
  primes = sympy.core.random.rng  # sympy draws primes with one of its own
  before = random.getstate(), np.random.get_state(), primes.getstate()
  random.seed(digest)
  np.random.seed(int.from_bytes(digest[:4], "big"))
  primes.seed(digest)
  try:
    yield
  finally:
    random.setstate(before[0])
    np.random.set_state(before[1])
    primes.setstate(before[2])


def require(package: pathlib.Path) -> None:
  """Checks that what the generator needs can be imported.

  Args:
    package: folder of the installed `mathematics_dataset`; what lies beside it
      will do too.

  Raises:
    ModuleNotFoundError: names what is missing, and the command.
  """
  with _on_path(package.parent):
    missing = [
      wheel
      for name, wheel in _REQUIRES.items()
      if importlib.util.find_spec(name) is None
    ]
  if missing:
    raise ModuleNotFoundError(
      "text source 'dm_mathematics' runs a generator that needs"
      f" {', '.join(missing)}; run: pip install {' '.join(missing)}"
    )


@functools.cache
def _problems(folder: pathlib.Path) -> dict[str, Callable[[], Any]]:
  """Name -> a function that makes a problem, sorted by name."""
  require(folder / _PACKAGE)
  with _on_path(folder):
    # Moved in sympy 1.6.
    import sympy.solvers.diophantine  # noqa: F401

    equations = sys.modules["sympy.solvers.diophantine"]
    inner = sys.modules["sympy.solvers.diophantine.diophantine"]
    equations.base_solution_linear = inner.base_solution_linear
    for name, repairs in _REPAIRS.items():
      _import_repaired(name, repairs)
    modules = importlib.import_module(f"{_PACKAGE}.modules.modules")
    return dict(sorted(_flat(modules.train(lambda entropy: entropy))))


@contextlib.contextmanager
def _on_path(folder: pathlib.Path) -> Iterator[None]:
  place = str(folder.resolve())
  sys.path.append(place)  # last: the folder may hold other versions of packages
  try:
    yield
  finally:
    sys.path.remove(place)


def _import_repaired(name: str, repairs) -> None:
  parent, _, child = name.rpartition(".")
  parent = importlib.import_module(parent)
  spec = importlib.util.find_spec(name)
  source = pathlib.Path(spec.origin).read_text(encoding="utf-8")
  for old, new in repairs:
    if old not in source:
      raise ImportError(
        f"{spec.origin} holds no {old!r}: it is another version of"
        " mathematics-dataset than 1.0.1; install that one"
      )
    source = source.replace(old, new)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  exec(compile(source, spec.origin, "exec"), module.__dict__)
  setattr(parent, child, module)


def _flat(tree, path=()) -> Iterator[tuple[str, Callable[[], Any]]]:
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from _flat(value, (*path, name))
    else:
      yield "__".join((*path, name)), value

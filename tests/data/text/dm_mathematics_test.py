import fractions
import os
import pathlib
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from gemmascope_jax.data.text import dm_mathematics, packaged_texts, texts


@pytest.fixture(scope="module")
def package():
  try:
    return packaged_texts.find("dm_mathematics", None)
  except (FileNotFoundError, ModuleNotFoundError) as error:
    pytest.skip(f"the generator can't be run here: {error}")


def _draw(package, **options):
  options = dict(rounds=1, characters=60) | options
  return list(dm_mathematics.generate(package, **options))


def test_answers_are_right(package):
  found = {"remainder": 0, "linear": 0}
  for text in _draw(package, characters=1500):
    lines = text.split("\n")
    assert lines.pop() == "" and len(lines) % 2 == 0
    for question, answer in zip(lines[::2], lines[1::2], strict=True):
      match = re.fullmatch(
        r"What is the remainder when (\d+) is divided by (\d+)\?", question
      )
      if match:
        found["remainder"] += 1
        assert int(answer) == int(match[1]) % int(match[2])
      match = re.fullmatch(r"Solve ([^,]+) = ([^,]+) for (\w)\.", question)
      if match:
        found["linear"] += 1
        for root in map(fractions.Fraction, answer.split(", ")):
          values = [eval(side, {match[3]: root}) for side in match.group(1, 2)]
          assert values[0] == values[1]
  assert all(found.values())


def test_a_document_is_of_one_module_and_all_take_turns(package):
  made = _draw(package, rounds=2)
  assert len(made) == len(set(made)) == 2 * 56
  assert all(60 <= len(text) < 2000 for text in made)


def test_the_seed_is_all_that_matters(package):
  first = _draw(package)
  assert _draw(package) == first  # whatever was drawn before
  assert set(_draw(package, seed=1)).isdisjoint(first)
  code = (
    "import pathlib, sys\nfrom gemmascope_jax.data.text import dm_mathematics\n"
    "made = dm_mathematics.generate(pathlib.Path(sys.argv[1]), rounds=1,"
    " characters=60)\nsys.stdout.write(''.join(made))"
  )
  root = pathlib.Path(__file__).parents[3]
  for seed in ("1", "2"):  # of the order of Python's sets
    run = subprocess.run(
      [sys.executable, "-c", code, str(package)],
      capture_output=True,
      text=True,
      check=True,
      cwd=root,
      env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
    )
    assert run.stdout == "".join(first)


def test_other_random_numbers_are_left_alone(package):
  random.seed(5)
  np.random.seed(5)
  expected = random.random(), np.random.rand()
  random.seed(5)
  np.random.seed(5)
  _draw(package)
  assert (random.random(), np.random.rand()) == expected


def test_it_is_a_source(package):
  first = next(texts.read("dm_mathematics", package.parent))
  assert len(first) >= dm_mathematics.DOCUMENT_CHARACTERS


def test_bad_arguments(package):
  with pytest.raises(ValueError, match="rounds 0, characters 60: expected at"):
    _draw(package, rounds=0)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
  marker = tmp_path / "mathematics_dataset/modules/modules.py"
  marker.parent.mkdir(parents=True)
  marker.write_text("")
  monkeypatch.setattr(
    dm_mathematics, "_REQUIRES", {"json": "json", "no_such_module": "no-wheel"}
  )
  with pytest.raises(
    ModuleNotFoundError, match="needs no-wheel; run: pip inst"
  ):
    texts.read("dm_mathematics", tmp_path)


def test_another_version_is_refused(tmp_path, monkeypatch):
  other = tmp_path / "otherpackage"
  other.mkdir()
  (other / "__init__.py").write_text("")
  (other / "changed.py").write_text("x = 1")
  monkeypatch.syspath_prepend(str(tmp_path))
  with pytest.raises(ImportError, match="another version of mathematics-datas"):
    dm_mathematics._import_repaired("otherpackage.changed", (("old", "new"),))

"""What the documentation says to type, and what it says there is.

Every shell block is run by bash, with `python` replaced by something that notes
its arguments, and every other program by nothing; then each of our binaries
parses the commands that are meant for it, and checks the config.
"""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import gemmascope_jax as gs

_ROOT = pathlib.Path(__file__).parent.parent
_PAGES = [
  _ROOT / "README.md",
  _ROOT / "launch/README.md",
  *sorted((_ROOT / "docs").glob("*.md")),
]
_PROGRAMS = (
  "pip docker kubectl hf git gcloud sky openssl gsutil ruff python3 apt-get"
)
# Notes its arguments, each with an end, and an end of the command.
_PYTHON = r"""#!/bin/sh
printf '%s\037' "$@" >> "$NOTES"
printf '\036' >> "$NOTES"
"""


def _blocks(page: pathlib.Path, language: str) -> list[str]:
  text = page.read_text(encoding="utf-8")
  return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
  """Arguments of every `python` in every shell block, by page."""
  folder = tmp_path_factory.mktemp("docs")
  here = folder / "here"
  for name in ("runs/quickstart/store/gemma_x", "runs/stores/gemma_x"):
    (here / name).mkdir(parents=True)
  programs = folder / "bin"
  programs.mkdir()
  for name in ("python", *_PROGRAMS.split()):
    path = programs / name
    path.write_text(_PYTHON if name == "python" else "#!/bin/sh\nexit 0\n")
    path.chmod(0o755)
  for name in (
    ".venv/bin/activate",
    ".venv-test/bin/activate",
    "peers/bin/pip",
  ):
    (here / name).parent.mkdir(parents=True)
    (here / name).write_text("#!/bin/sh\n")
    (here / name).chmod(0o755)
  found = {}
  for page in _PAGES:
    notes = folder / "notes"
    notes.write_text("")
    script = "\n".join(_blocks(page, "bash"))
    # A clone's folder is made by git.
    script = re.sub(r"(?m)^(git clone .*) && cd .*$", r"\1", script)
    subprocess.run(
      ["bash", "-eu", "-c", script],
      cwd=here,
      env={
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(folder),
        "HF_TOKEN": "x",
        "NOTES": str(notes),
      },
      check=True,
      capture_output=True,
    )
    found[page] = [
      command.split("\037")[:-1]
      for command in notes.read_text().split("\036")[:-1]
    ]
  return found


def test_every_command_is_one_that_the_binaries_take(commands, tmp_path):
  ours = [
    command
    for every in commands.values()
    for command in every
    if command[:1] == ["-m"]
    and command[1].split(".")[0] in ("experiments", "launch")
  ]
  assert len(ours) > 40
  asked = tmp_path / "asked.json"
  asked.write_text(json.dumps([command[1:] for command in ours]))
  found = subprocess.run(
    [sys.executable, "-m", "tests.parse_commands", str(asked)],
    capture_output=True,
    text=True,
    cwd=_ROOT,
  )
  assert found.returncode == 0, found.stdout + found.stderr[-2000:]
  assert f"{len(ours)} commands" in found.stdout


def test_other_modules_that_are_named_are_there(commands):
  for page, every in commands.items():
    for command in every:
      if command[:1] == ["-m"] and command[1] not in ("venv", "pytest"):
        path = _ROOT / (command[1].replace(".", "/") + ".py")
        assert path.exists(), (page.name, command)


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_python_blocks_use_what_there_is(page):
  for block in _blocks(page, "python"):
    for node in ast.walk(ast.parse(block)):
      if not isinstance(node, ast.Attribute):
        continue
      names, inner = [], node
      while isinstance(inner, ast.Attribute):
        names.append(inner.attr)
        inner = inner.value
      if isinstance(inner, ast.Name) and inner.id == "gs":
        value = gs
        for name in reversed(names):
          value = getattr(value, name)


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  text = page.read_text(encoding="utf-8")
  for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
    if not target.startswith(("http://", "https://")):
      assert (page.parent / target).exists(), (page.name, target)

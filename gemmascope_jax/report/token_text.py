"""Tokens as a reader sees them: inert HTML in which white space is visible."""

from __future__ import annotations

import html
import unicodedata

_NAMED = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "␣"}
_JOINERS = "\u200c\u200d"  # part of the spelling of many languages


def escape(text: object) -> str:
  """Any value as HTML text that is also safe inside a quoted attribute."""
  return html.escape(visible(str(text), leading=False), quote=True)


def visible(text: str, leading: bool = True) -> str:
  """Text in which nothing is invisible and nothing can disturb the layout.

  A newline is shown as ↵ and a tab as ⇥; a run of spaces, or a text of nothing
  but spaces, as ␣; other control and formatting characters (such as those
  that reverse the direction of text) by their code point. Runs of more than
  four of one mark are counted: "␣×12".

  Args:
    text: one token's display string, or any string.
    leading: whether a single leading space is shown as ␣ too.
  """
  out = []
  i = 0
  while i < len(text):
    char = text[i]
    run = 1
    while i + run < len(text) and text[i + run] == char:
      run += 1
    first = i == 0
    i += run
    if char == " " and run == 1 and text != " " and not (first and leading):
      out.append(" ")
      continue
    mark = _mark(char)
    out.append(f"{mark}×{run}" if mark != char and run > 4 else mark * run)
  return "".join(out)


def in_context(piece: str) -> str:
  """A token within its context, as HTML: a word keeps its leading space.

  A line may break after ↵, as the text's own lines do.
  """
  shown = html.escape(visible(piece, leading=False), quote=True)
  return shown + "<wbr>" if shown.endswith("↵") else shown


def in_list(piece: str) -> str:
  """A token that stands alone, as HTML: its leading space is shown as ␣."""
  return html.escape(visible(piece), quote=True)


def _mark(char: str) -> str:
  if char in _NAMED:
    return _NAMED[char]
  if char in _JOINERS:
    return char
  if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
    return f"‹U+{ord(char):04X}›"
  return char

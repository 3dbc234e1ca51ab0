"""A prompt pair -> its circuit: result, graph for viewers, figure and table."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gemmascope_jax import artifacts, circuits
from gemmascope_jax.circuits import export
from gemmascope_jax.report import circuit_table, plotting
from gemmascope_jax.report.study_figures import circuit as figure
from gemmascope_jax.studies import subjects

RESULT, GRAPHS = "circuit.json", "graphs"
FIGURE, TABLE = "circuit.png", "circuit.txt"


def circuit(
  lm,
  given: Sequence[str],
  clean: str,
  patch: str | None,
  answer: str,
  wrong: str | None,
  out: str | os.PathLike,
  *,
  slug: str = "circuit",
  **options: Any,
) -> dict[str, Any]:
  """Finds and writes a circuit.

  Args:
    lm: a `Gemma` with its tokenizer.
    given: SAEs, one a site: "PATH", "SITE=PATH".
    clean: the prompt.
    patch: the other prompt, of as many tokens; None: the zero baseline.
    answer: what follows the prompt, one token; spaces count.
    wrong: what would follow the other one; None: the answer's logit alone.
    out: folder to write to: circuit.json, circuit.png, circuit.txt and, for
      viewers, graphs/SLUG.json.
    slug: the graph's name in viewers.
    **options: of `circuits.attribute`.

  Returns:
    The result, see `circuits.result`.

  Raises:
    ValueError: two SAEs of a site, an answer of several tokens, prompts of
      different lengths; and what `attribute` raises.
  """
  export.check_slug(slug)  # before the work, not after it
  read = [subjects.read(each) for each in given]
  saes = {}
  for each in read:
    if each.reads in saes:
      raise ValueError(
        f"two SAEs of {each.reads}: a circuit has one dictionary a site"
      )
    saes[each.reads] = each.sae
  tokenizer = lm.tokenizer
  metric = circuits.Metric(
    _token(tokenizer, "answer", answer),
    None if wrong is None else _token(tokenizer, "wrong", wrong),
  )
  ids = [_prompt(tokenizer, clean)]
  ids.append(None if patch is None else _prompt(tokenizer, patch))
  if patch is not None and len(ids[0]) != len(ids[1]):
    texts = [" ".join(map(repr, tokenizer.pieces(each))) for each in ids]
    raise ValueError(
      f"the prompts differ in length, so tokens can't be compared one by one."
      f" Clean, {len(ids[0])} tokens: {texts[0]}. Patch, {len(ids[1])} tokens:"
      f" {texts[1]}. Reword one"
    )
  arrays = [None if each is None else np.array(each, np.int32) for each in ids]
  found = circuits.attribute(lm, saes, *arrays, metric, **options)
  result = circuits.result(lm, saes, found)
  names = {each.reads: each.name for each in read}
  for site in result["sites"]:
    site["sae"] = names.get(site["site"])
  out = pathlib.Path(out)
  graph = export.graph(result, slug)
  with plotting.style():
    drawn = plotting.png(figure.draw(result)["circuit"])
  artifacts.write_json(out / RESULT, result)
  export.publish(out / GRAPHS, graph)
  artifacts.write_bytes(out / FIGURE, drawn)
  artifacts.write_text(out / TABLE, circuit_table.table(result) + "\n")
  return result


def _prompt(tokenizer, text: str) -> list[int]:
  return [tokenizer.bos_id, *tokenizer.encode(text)]


def _token(tokenizer, name: str, text: str) -> int:
  ids = tokenizer.encode(text)
  if len(ids) != 1:
    pieces = ", ".join(map(repr, tokenizer.pieces(ids)))
    raise ValueError(
      f"{name} {text!r} is {len(ids)} tokens ({pieces}): expected one; mind the"
      " space that begins a word, as in ' Paris'"
    )
  return ids[0]

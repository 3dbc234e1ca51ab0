"""The page of studies: figures in the paper's order, from result files alone."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gemmascope_jax import artifacts
from gemmascope_jax.report import page_assets, plotting, wording
from gemmascope_jax.report.results import ResultError
from gemmascope_jax.report.token_text import escape

PAGE = "index.html"
_TITLES = {
  "fidelity": "Sparsity and fidelity (figures 2, 13, 17, 18)",
  "position": "Position in the sequence (figures 3, 15)",
  "width": "Width and feature splitting (figures 4, 5)",
  "frequency": "Firing frequency (figure 5)",
  "interpretability": "Interpretability (figures 6, 7)",
  "instruct": "Instruction-tuned models (figures 8, 19-23)",
  "subsets": "Subsets of a corpus (figure 9)",
  "precision": "Low precision (figure 10)",
  "transcoders": "Transcoders (figure 11)",
  "uniformity": "Uniformity of active latents' importance (figure 16)",
}


def build(
  results_folder: str | os.PathLike,
  out_folder: str | os.PathLike,
  order: Sequence[str],
) -> pathlib.Path:
  """Draws every study whose result is there, and the page that shows them.

  Args:
    results_folder: holds NAME.json of some studies.
    out_folder: for the figures and the page.
    order: names of the studies, as the page has them.

  Returns:
    The page's path.

  Raises:
    FileNotFoundError: no result of any study.
    ResultError: a file that is no study's result.
    ImportError: matplotlib is not installed.
  """
  folder, out = pathlib.Path(results_folder), pathlib.Path(out_folder)
  results = {}
  for name in order:
    path = folder / f"{name}.json"
    if path.exists():
      results[name] = artifacts.read_json(path)
      if results[name].get("study") != name:
        raise ResultError(f"{path}: expected a result of the study {name!r}")
  if not results:
    raise FileNotFoundError(
      f"no study's result in {folder}: run `python -m experiments.evaluate"
      " --study=all` first"
    )
  plots: dict[str, dict[str, str]] = {}
  with plotting.style():
    for name, result in results.items():
      module = f"gemmascope_jax.report.study_figures.{name}"
      draw = importlib.import_module(module).draw
      plots[name] = {}
      for stem, figure in draw(result).items():
        artifacts.write_bytes(out / f"{stem}.png", plotting.png(figure))
        plots[name][stem] = plotting.svg(figure, stem)
  artifacts.write_text(out / PAGE, page(results, plots))
  return out / PAGE


def page(
  results: Mapping[str, Mapping[str, Any]],
  plots: Mapping[str, Mapping[str, str]],
) -> str:
  """The page as one string of HTML; every string from data is escaped.

  Args:
    results: by study, in the page's order.
    plots: of each study `<svg>` elements by stem.
  """
  first = next(iter(results.values()))
  title = f"Studies of {len(first.get('saes') or first['rows'])} SAEs of"
  title += f" {first['model']['label']}"
  sections = [
    (
      "findings",
      "What the paper found, and what is seen here",
      _findings(results),
    )
  ]
  for name, result in results.items():
    seen = wording.tokens(result["tokens"])
    body = f'<p class="lead">{escape(f"On {seen}.")}</p>' + "".join(
      f'<figure><div class="wide" tabindex="0" role="img" aria-label='
      f'"{escape(stem)}"><div class="plot">{svg}</div></div></figure>'
      for stem, svg in plots[name].items()
    )
    if name == "fidelity":
      body += _fidelity(result)
    sections.append((name, _TITLES[name], body))
  links = "".join(f'<li><a href="#{n}">{t}</a></li>' for n, t, _ in sections)
  bodies = "\n".join(
    f'<section id="{n}">\n<h2>{t}</h2>\n{b}\n</section>' for n, t, b in sections
  )
  provenance = {
    name: {
      key: result[key]
      for key in ("tokens", "hashes", "token_policy", "config", "code")
    }
    for name, result in results.items()
  }
  text = json.dumps(provenance, indent=2, sort_keys=True)
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="{page_assets.content_policy()}">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{page_assets.CSS}
td.words{{white-space:normal;text-align:left;min-width:16rem}}</style>
</head>
<body>
<div class="top">
<h1>{escape(title)}</h1>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</div>
<main id="main">
{bodies}
</main>
<footer><details><summary>Provenance: configuration, hashes, token
policy</summary><pre>{escape(text)}</pre></details></footer>
</body>
</html>
"""


def _findings(results: Mapping[str, Mapping[str, Any]]) -> str:
  rows = "".join(
    f'<tr><th scope="row">{escape(each["figure"])}</th>'
    f'<td class="words">{escape(each["claim"])}</td>'
    f'<td class="words">{escape(each["verdict"])}</td>'
    f'<td class="words">{escape(each["seen"])}</td></tr>'
    for result in results.values()
    for each in result.get("findings", ())
  )
  return _table(("Figure", "The paper", "Here", "Seen"), rows)


def _fidelity(result: Mapping[str, Any]) -> str:
  """Tables of the metrics, and of what other projects call FVU."""
  metrics = (
    ("l0", "L0"),
    ("delta_loss", "delta loss, nats"),
    ("kl", "KL, nats"),
    ("fvu", "FVU"),
    ("cosine", "cosine"),
    ("bias", "gamma"),
    ("loss_recovered_zero", "loss recovered, zero ablation"),
    ("loss_recovered_mean", "loss recovered, mean ablation"),
  )
  rows = "".join(
    f'<tr><th scope="row">{escape(sae["site"] + ": " + sae["name"])}</th>'
    + "".join(f"<td>{_number(sae[key])}</td>" for key, _ in metrics)
    + "</tr>"
    for sae in result["saes"]
  )
  out = _table(("SAE", *(label for _, label in metrics)), rows)
  conventions = result["saes"][0]["compat"]
  rows = "".join(
    f'<tr><th scope="row">{escape(each["name"])}</th>'
    f'<td class="words">{escape(each["used_by"])}</td>'
    f'<td class="words">{escape(each["flaw"] or "the definition used here")}'
    "</td>"
    + "".join(
      f"<td>{_plain(sae['compat'][number]['value'])}</td>"
      for sae in result["saes"]
    )
    + "</tr>"
    for number, each in enumerate(conventions)
  )
  names = [sae["name"] for sae in result["saes"]]
  out += "<h3>What other projects call FVU, on the same reconstructions</h3>"
  return out + _table(
    ("Convention", "Used by", "What is wrong with it", *names), rows
  )


def _table(head: Sequence[str], rows: str) -> str:
  cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
  return (
    f'<div class="wide" tabindex="0"><table><thead><tr>{cells}</tr></thead>'
    f"<tbody>{rows}</tbody></table></div>"
  )


def _number(value: Mapping[str, Any] | None) -> str:
  if value is None:
    return "–"
  error = value["stderr"]
  text = f"{value['mean']:.4g}"
  return text if error is None else f"{text} ± {error:.2g}"


def _plain(value: float | None) -> str:
  return "–" if value is None else f"{value:.4f}"

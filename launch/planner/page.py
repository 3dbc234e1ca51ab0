"""A plan as one HTML page, in the report's look: tables and figures."""

from __future__ import annotations

import json
import pathlib

from gemmascope_jax import artifacts
from gemmascope_jax.experiment import settings
from gemmascope_jax.report import page_assets
from gemmascope_jax.report.token_text import escape
from launch.planner import figures, tables
from launch.planner.plan import Plan
from launch.planner.prediction import Prediction

_STYLE = "td:last-child,th:last-child{padding-right:0}"


def write(
  path: str, plan: Plan, prediction: Prediction | None = None
) -> list[pathlib.Path]:
  """Writes the page, and its figure as a PNG beside it.

  Args:
    path: of the page, ending with ".html".
    plan: what to show.
    prediction: of its first run, if it was simulated.

  Returns:
    Both paths.

  Raises:
    ValueError: the path ends otherwise.
    ImportError: matplotlib is not installed; names the extra.
  """
  if not path.endswith(".html"):
    raise ValueError(f"--page={path}: expected a name that ends with .html")
  page = pathlib.Path(path)
  drawn = figures.parts(plan, prediction)
  page.parent.mkdir(parents=True, exist_ok=True)
  image = page.with_suffix(".png")
  artifacts.write_bytes(image, drawn["png"])
  artifacts.write_text(page, html(plan, drawn["svg"], prediction))
  return [page, image]


def html(plan: Plan, svg: str, prediction: Prediction | None = None) -> str:
  """The page as one string; every string from data is escaped.

  Args:
    plan: what to show.
    svg: its figure, as `plotting.svg` makes it.
    prediction: of its first run, if it was simulated.
  """
  title = f"Plan of {plan.config.workdir}"
  body = "\n".join(map(_section, tables.tables(plan, prediction)))
  config = json.dumps(
    settings.resolved(plan.config), indent=2, sort_keys=True, default=str
  )
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="{page_assets.content_policy()}">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{page_assets.CSS}{_STYLE}</style>
</head>
<body>
<div class="top">
<h1>{escape(title)}</h1>
<p class="lead">Arithmetic and assumptions, not measurements.</p>
</div>
<main id="main">
<figure><div class="wide" tabindex="0" role="img" aria-label="The plan's
 figures; their numbers are in the tables"><div class="plot">{svg}</div></div>
</figure>
{body}
</main>
<footer><details><summary>Configuration</summary>
<pre>{escape(config)}</pre></details></footer>
</body>
</html>
"""


def _section(shown: tables.Table) -> str:
  head = "".join(f'<th scope="col">{escape(name)}</th>' for name in shown.head)
  head = f"<thead><tr>{head}</tr></thead>" if any(shown.head) else ""
  rows = "".join(
    f'<tr><th scope="row">{escape(name)}</th>'
    + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    + "</tr>\n"
    for name, *cells in shown.rows
  )
  notes = "".join(f"<p>{escape(note)}.</p>" for note in shown.notes)
  return (
    f'<section><h2>{escape(shown.title)}</h2>\n<div class="wide" tabindex="0">'
    f"<table>{head}<tbody>{rows}</tbody></table></div>{notes}</section>"
  )

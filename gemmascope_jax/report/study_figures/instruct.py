"""SAEs of a base and of its tuned model, on rollouts (paper, 8, 19-23)."""

from __future__ import annotations

from typing import Any

from gemmascope_jax.report import plotting, wording

_COLUMNS = (("rollout", "on what the model said"), ("prompt", "on prompts"))
_ROWS = (("delta_loss", "delta loss (nats a token)"), ("fvu", "FVU"))
_KINDS = {
  ("base", False): "of the base model",
  ("tuned", False): "of the tuned model",
  ("base", True): "of the base model, rescaled activations",
}


def draw(result: dict[str, Any]) -> dict[str, Any]:
  """Figures by file stem, from an instruct result alone."""
  return {"instruct": instruct(result)}


def instruct(result: dict[str, Any]) -> Any:
  """Delta loss and FVU against L0, for rollouts and prompts apart."""
  groups: dict[tuple, list] = {}
  for row in result["saes"]:
    key = (row["site"], row["trained_on"], row["rescaled"])
    groups.setdefault(key, []).append(row)
  figure = plotting.blank(10.5, 8.0)
  panels = figure.subplots(2, 2, sharex=True)
  l0s = [
    row["parts"][part]["l0"]["mean"]
    for row in result["saes"]
    for part, _ in _COLUMNS
  ]
  for across, (part, where) in enumerate(_COLUMNS):
    for down, (metric, label) in enumerate(_ROWS):
      panel = panels[down][across]
      for number, (key, rows) in enumerate(groups.items()):
        points = sorted(
          (row["parts"][part] for row in rows), key=lambda p: p["l0"]["mean"]
        )
        _line(panel, number, key, points, metric)
      plotting.log_axis(panel.xaxis, l0s, (0.1, 0.1))
      panel.axhline(0, color=plotting.MUTED, linewidth=0.8)
      panel.set_ylabel(label)
      if not down:
        panel.set_title(where[0].upper() + where[1:])
      else:
        panel.set_xlabel("L0 (active latents a token)")
  tokens = result.get("tokens")
  seen = f" On {wording.tokens(tokens)}." if tokens else ""
  model = result.get("model", {}).get("label", "the tuned model")
  plotting.frame(
    figure,
    "SAEs in an instruction-tuned model",
    f"Spliced into {model}.{seen}",
    "An activation belongs to the part of its own token, a loss to that of the"
    " token predicted. Bars: one standard error over rollouts, which all SAEs"
    " share.",
    legend=panels[0][0].get_legend_handles_labels(),
  )
  return figure


def _line(panel, number, key, points, metric) -> None:
  site, trained_on, rescaled = key
  at = number % len(plotting.SERIES)
  panel.errorbar(
    [each["l0"]["mean"] for each in points],
    [each[metric]["mean"] for each in points],
    yerr=[each[metric]["stderr"] or 0.0 for each in points],
    color=plotting.SERIES[at],
    marker=plotting.MARKERS[at],
    markerfacecolor="none" if rescaled else plotting.SERIES[at],
    linestyle="--" if rescaled else "-",
    linewidth=1.4,
    elinewidth=1,
    markersize=5,
    label=f"{site}: {_KINDS[trained_on, rescaled]}",
  )

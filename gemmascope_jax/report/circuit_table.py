"""A circuit as text: how much each site carries, and the largest nodes."""

from __future__ import annotations

from typing import Any

from gemmascope_jax.report import token_text


def table(result: dict[str, Any], rows: int = 20) -> str:
  """Lines for a terminal.

  Args:
    result: of `circuits.result`.
    rows: latents to show, and as many errors as there are among those of larger
      effect.

  Returns:
    The text, without a last line break.
  """
  show = lambda piece: token_text.visible(piece)
  what = show(result["answer"]["piece"])
  if result["wrong"] is not None:
    what += f" less {show(result['wrong']['piece'])}"
  lines = [
    f"logit of {what}: {result['value']:.3f}"
    + (
      ""
      if result["patch_value"] is None
      else f", on the patch prompt {result['patch_value']:.3f}"
    )
    + f" (p = {result['probability']:.3f})",
    "",
    f"{'site':8} {'latents':>9} {'errors':>9} {'both':>9}   effects of patching"
    " all",
  ]
  lines += [
    f"{each['site']:8} {each['latents']:9.3f} {each['error']:9.3f}"
    f" {each['all']:9.3f}"
    for each in result["sites"]
  ]
  lines += [
    "",
    f"{'site':8} {'token':16} {'latent':>7} {'clean':>9} {'patch':>9}"
    f" {'effect':>8} {'real':>8}  promotes",
  ]
  shown = 0
  for node in result["nodes"]:
    if shown == rows:
      break
    shown += node["latent"] is not None
    lines.append(_line(result, node))
  lines += ["", *_agreement(result)]
  return "\n".join(line.rstrip() for line in lines).rstrip()


def _line(result, node) -> str:
  number = lambda value, form: "" if value is None else format(value, form)
  piece = token_text.visible(result["tokens"][node["position"]])
  token = f"{node['position']} {piece}"
  name = "error" if node["latent"] is None else str(node["latent"])
  if node["site"] == "embed":
    name = ""
  words = " ".join(token_text.visible(word) for word in node["promotes"])
  return (
    f"{node['site']:8} {token:16} {name:>7} {number(node['clean'], '9.2f'):>9}"
    f" {number(node['patch'], '9.2f'):>9} {node['effect']:8.3f}"
    f" {number(node['ablated'], '8.3f'):>8}  {words}"
  )


def _agreement(result) -> list[str]:
  lines = []
  for kind, found in (result["agreement"] or {}).items():
    if found is None:
      continue
    said = [
      f"{name} {found[name]['mean']:.3f} ± {found[name]['stderr'] or 0:.3f}"
      for name in ("pearson", "spearman", "sign")
      if found[name]["mean"] is not None
    ]
    lines.append(
      f"effect against real effect, {found['nodes']} {kind}: {', '.join(said)}"
    )
  return lines

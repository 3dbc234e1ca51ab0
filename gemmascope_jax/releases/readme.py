"""The README of a release, a model card of the Hub, made from the SAEs' cards."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

LIBRARY = "gemmascope_jax"
_TAGS = ("sparse-autoencoder", "interpretability", "gemma", "jax")
_GEMMA_SCOPE = 4_000_000_000  # activations, of its smallest SAEs
_FEW = 64  # sequences
_DEAD = 0.2
_NAMED = 4  # more are counted
_SITES = {
  "res": "residual stream after block L",
  "mlp": "output of the MLP of block L, after its norm",
  "att": "outputs of the attention heads of block L side by side, before W_O",
  "mlp_in": "input of the MLP of block L, normalised but without the norm's gain",
}

_MEASURED = {
  "L0": "latents active at a token, mean: E ||f(x)||_0",
  "FVU": "fraction of variance unexplained: E ||x - x_hat||^2 over"
  " E ||x - mean(x)||^2",
  "delta loss": "how much worse the model predicts the next token with the"
  " reconstruction in place of the activation, nats a token",
  "loss recovered": "1 - delta loss over that of putting zeros there",
  "silent in evaluation": "share of the finished SAE's latents that fire at none"
  " of the evaluation's tokens, with the jackknife's error; more text would wake"
  " some",
  "dead in training": "share of the latents that no activation of the last part"
  " of training had fired; counted while training, not of the finished SAE",
}


# What else reads a format; of `gemma_scope` the layout itself is explained.
_OTHERS = {
  "gemma_scope_2": "What reads Gemma Scope 2's `params.safetensors` and"
  " `config.json` reads these.",
  "saelens": "`sae_lens.SAE.load_from_disk(FOLDER)` of SAELens 6 loads it too.",
  "dictionary_learning": "`dictionary_learning.utils.load_dictionary(FOLDER,"
  ' "cpu")` loads it too.',
  "circuit_tracer": "circuit-tracer's `load_relu_transcoder(FILE, LAYER)` loads"
  " each `layer_L.safetensors`; for a whole model put them into one folder.",
}


def render(cards: Mapping[str, Mapping[str, Any]], format: str) -> str:
  """Markdown with the Hub's front matter.

  Args:
    cards: of each SAE, by its folder, in order.
    format: of the weights.
  """
  first = next(iter(cards.values()))
  parts = [
    _front_matter(first),
    _head(cards),
    _table(cards),
    _loading(cards, format),
    _training(cards),
    _evaluation(cards),
    _caveats(cards),
    _checking(first),
  ]
  return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(card) -> str:
  from huggingface_hub import ModelCardData

  about = ModelCardData(
    license=card["licence"],
    library_name=LIBRARY,
    tags=list(_TAGS),
    base_model=card["model"]["base"],
  )
  return f"---\n{about.to_yaml().strip()}\n---"


def _head(cards) -> str:
  first = next(iter(cards.values()))
  kinds = {
    "transcoders" if c["sae"]["target_site"] else "SAEs": 0
    for c in cards.values()
  }
  what = " and ".join(sorted(kinds, key=lambda kind: kind != "SAEs"))
  families = _listed(sorted({c["sae"]["family"] for c in cards.values()}))
  places = _listed(dict.fromkeys(_site(c) for c in cards.values()))
  licence = first["licence"]
  said = (
    f"Licence of the weights: {licence}."
    if licence
    else "No licence is stated: nobody but their owner may use these weights"
    " until one is."
  )
  return (
    f"# {len(cards)} {what} of {_text(first['model']['label'])}\n\n"
    f"Sparse autoencoders ({families}) at {places}, on raw activations: whatever"
    " training did to their scale is folded into the weights. Every number below"
    f" is a mean ± one standard error over sequences of held-out text. {said}"
    f"\n\n{_sites(cards)}"
  )


def _sites(cards) -> str:
  """What the sites' names mean."""
  named = [c["sae"][k] for c in cards.values() for k in ("site", "target_site")]
  kinds = {name.partition(".")[0] for name in named if name}
  return "\n".join(
    f"* `{kind}.L`: {said}" for kind, said in _SITES.items() if kind in kinds
  )


def _table(cards) -> str:
  rows = [
    ["folder", "site", "family", "width"]
    + ["L0", "FVU", "delta loss", "loss recovered"]
    + ["silent in evaluation", "dead in training"]
  ]
  for folder, card in cards.items():
    metrics, sae = card["evaluation"]["metrics"], card["sae"]
    family = sae["family"]
    if sae["k"]:
      family += f", k = {sae['k']}"
    if sae["skip"]:
      family += ", skip"
    dead = card["training"]["dead"]["share"]
    rows.append(
      [f"`{folder}`", _site(card), _text(family), f"{sae['width']:,}"]
      + [
        _number(metrics["l0"]),
        _number(metrics["fvu"]),
        _number(metrics["delta_loss"]),
        _number(metrics["loss_recovered"], 100, " %"),
        _number(metrics["silent"], 100, " %"),
        "" if dead is None else f"{100 * dead:.1f}\N{NO-BREAK SPACE}%",
      ]
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  line = lambda row: (
    "| "
    + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))
    + " |"
  )
  rule = (
    "|"
    + "|".join(
      "-" * (w + 1) + (":" if i > 2 else "-") for i, w in enumerate(widths)
    )
    + "|"
  )
  return "\n".join(["## SAEs", "", line(rows[0]), rule, *map(line, rows[1:])])


def _loading(cards, format) -> str:
  folder, card = next(iter(cards.items()))
  sae = card["sae"]
  reads = f"x: [..., {sae['site_width']}], activations of {sae['site']}"
  text = f"""## Loading

```python
import gemmascope_jax as gs

sae = gs.sae.load("{folder}")  # below where this folder is
latents = sae.encode(x)  # {reads}
```"""
  if format != "gemma_scope":
    return (
      f"{text}\n\nThe weights are in the format {_text(format)}."
      f" {_OTHERS.get(format, '')}"
    ).rstrip()
  text += """

Each `params.npz` is laid out as Gemma Scope's: `W_enc` [D, M], `b_enc`, `W_dec` [M, D], `b_dec`, `threshold`, float32.
What reads those reads these: `pre = x @ W_enc + b_enc`, `f = (pre > threshold) * relu(pre)`,
`x_hat = f @ W_dec + b_dec`."""
  cuts = [f"`{f}`" for f, c in cards.items() if c["sae"]["k"]]
  skips = [f"`{f}`" for f, c in cards.items() if c["sae"]["skip"]]
  if cuts:
    text += (
      "\n\nOf TopK SAEs only the k largest latents of a token stay besides,"
      " which is not in the arrays (`k` is in the card, and the loader above"
      f" knows): {_listed(cuts)}."
    )
  if skips:
    text += (
      "\n\nSkip transcoders add `x @ affine_skip_connection`:"
      f" {_listed(skips)}."
    )
  return text


def _training(cards) -> str:
  first = next(iter(cards.values()))
  sources = first["training"]["sources"]
  counts = sorted(
    {c["training"]["activations"] for c in cards.values()} - {None}
  )
  amount = " to ".join(
    f"{n:,}" for n in dict.fromkeys((*counts[:1], *counts[-1:]))
  )
  model = first["model"]
  delta = (
    f" with the fine-tune {_text(model['delta'])}" if model["delta"] else ""
  )
  lines = [
    "## Trained on",
    "",
    f"{amount or 'An unknown number of'} activations each of"
    f" {_text(model['label'])}{delta} (weights `{model['weights_hash'][:12]}`,"
    f" {model['dtype']}), of these texts:",
    "",
    *_sources(sources, first["training"]["licences"]),
    "",
    f"{_policy(first['token_policy'])} Recipe, settings and hashes of each SAE"
    " are in its `card.json`.",
  ]
  return "\n".join(lines)


def _evaluation(cards) -> str:
  card = next(iter(cards.values()))
  found = card["evaluation"]
  code = dict.fromkeys(c["evaluation"]["code"] for c in cards.values())
  tokens = found["tokens"]
  checked = (
    "None of their documents was trained on (compared by content)."
    if tokens["checked_against_training"]
    else "They are of the held-out split; the activations trained on were not"
    " at hand to compare documents with."
  )
  lines = [
    "## How measured",
    "",
    f"On {tokens['sequences']:,} held-out sequences of {tokens['length']:,}"
    f" tokens ({tokens['counted']:,} that count) of the same sources.",
    "",
    f"{checked} The model's own loss on them is"
    f" {_number(found['metrics']['loss_clean'])} nats a token. Losses"
    f" were measured by version {_listed(map(_text, code))} of {LIBRARY}.",
    "",
    *(f"* {name}: {what}." for name, what in _MEASURED.items()),
  ]
  return "\n".join(lines)


def _caveats(cards) -> str:
  first = next(iter(cards.values()))
  said = []
  trained = [c["training"]["activations"] for c in cards.values()]
  trained = [n for n in trained if n is not None]
  if trained and min(trained) < _GEMMA_SCOPE:
    said.append(
      f"Trained on {min(trained):,} activations; Gemma Scope's smallest had 4"
      " billion. Directions and thresholds are far from where longer training"
      " would put them."
    )
  sequences = first["evaluation"]["tokens"]["sequences"]
  if sequences < _FEW:
    said.append(
      f"Measured on {sequences} sequences: standard errors are themselves rough."
    )
  dead = [
    folder
    for folder, c in cards.items()
    if (c["training"]["dead"]["share"] or 0) > _DEAD
  ]
  if dead:
    some = _listed(f"`{folder}`" for folder in dead)
    if len(dead) > _NAMED:
      some = f"{len(dead)} of the {len(cards)} SAEs (see the last column)"
    said.append(
      f"More than {_DEAD:.0%} of the latents were dead in training in {some}."
    )
  if "quantised" in first["model"]["label"]:
    said.append(
      "The model's weights were quantised; on the original ones activations, and"
      " so these numbers, differ."
    )
  if not first["model"]["base"]:
    said.append(
      "The language model is not one that the Hub has by a known name."
    )
  lost = [
    f"`{folder}`"
    for folder, c in cards.items()
    if c["evaluation"]["metrics"]["loss_recovered"]["mean"] < 0.5
  ]
  if lost:
    said.append(f"Less than half of the loss is recovered by {_listed(lost)}.")
  said.append(
    "L0, FVU and losses depend on the text: on other text expect other numbers."
  )
  return "\n".join(["## Caveats", "", *(f"* {each}" for each in said)])


def _checking(card) -> str:
  model = card["model"]
  options = f"--lm={model['source']}"
  if model["delta"]:
    options += " --delta=FOLDER_OF_THE_FINE_TUNE"
  return f"""## Checking

`index.json` holds the SHA-256 of every file. With `{LIBRARY}` and this folder at PATH,

```bash
python -m experiments.release verify PATH {options}
```

compares them, makes this page again from the cards, loads every SAE and compares its L0 and FVU, measured again, with its card's. Losses are not measured again."""


def _sources(names: Sequence[str], licences: Mapping[str, str]) -> list[str]:
  return [f"* {_text(name)}: {_text(licences[name])}" for name in names]


def _policy(policy: Mapping[str, Any] | None) -> str:
  if policy is None:
    return "Which tokens were left out is not known."
  ids = ", ".join(map(str, policy["excluded_ids"]))
  text = f"Tokens {ids} (BOS, EOS, padding) are never read, spliced or counted"
  if policy.get("excluded_sequences"):
    runs = json.dumps(policy["excluded_sequences"])
    return f"{text}, nor are these runs of tokens, of a chat's markup: {runs}."
  return f"{text}."


def _site(card) -> str:
  sae = card["sae"]
  if sae["target_site"]:
    return f"{sae['site']} → {sae['target_site']}"
  return str(sae["site"])


def _number(value: Mapping[str, Any], scale: float = 1, unit: str = "") -> str:
  """Mean and error, with two digits of the error."""
  mean, error = value["mean"] * scale, value["stderr"]
  if not error:
    return f"{mean:.4g}{unit}"
  error *= scale
  digits = max(0, 1 - int(f"{error:e}".partition("e")[2]))
  text = f"{mean:.{digits}f} ± {error:.{digits}f}{unit}"
  return text.replace(" ", "\N{NO-BREAK SPACE}")


def _listed(words) -> str:
  words = list(words)
  return ", ".join(words[:-1]) + " and " * (len(words) > 1) + words[-1]


def _text(value: Any) -> str:
  """Anybody's words as text of one table cell, never as markup."""
  text = html.escape(" ".join(str(value).split()), quote=False)
  for mark in ("\\", "`", "|", "*", "[", "]"):
    text = text.replace(mark, f"\\{mark}")
  return text

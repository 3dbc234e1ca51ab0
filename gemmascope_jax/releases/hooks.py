"""What other tools call our sites and models.

Hugging Face's module names, which Gemma Scope 2's files use, and
TransformerLens's hooks, which SAELens and circuit-tracer use. The MLP's input
has two names in each tool: before the norm's gain (our `mlp_in.L`) and after it
(`mlp_in_gain.L`, see `gain`). TransformerLens's `hook_mlp_in`, which SAELens
gives for Gemma Scope 2's transcoders, is neither but the residual stream before
the norm, so it is no site of ours.
"""

from __future__ import annotations

import re

from gemmascope_jax.gemma.weights import hub
from gemmascope_jax.releases.names import EMBEDDING, GAINED

_HUGGING_FACE = {
  "res": "model.layers.{}.output",
  "mlp": "model.layers.{}.post_feedforward_layernorm.output",
  "att": "model.layers.{}.self_attn.o_proj.input",
  GAINED: "model.layers.{}.pre_feedforward_layernorm.output",
}
_TRANSFORMER_LENS = {
  "res": "blocks.{}.hook_resid_post",
  "mlp": "blocks.{}.hook_mlp_out",
  "att": "blocks.{}.attn.hook_z",
  "mlp_in": "blocks.{}.ln2.hook_normalized",
  GAINED: "blocks.{}.mlp.hook_in",
}


def hugging_face(site: str) -> str | None:
  """Such as "model.layers.12.output" for "res.12"; None: it has no name."""
  return _name(site, _HUGGING_FACE)


def transformer_lens(site: str) -> str | None:
  """Such as "blocks.12.hook_resid_post" for "res.12"; None: no name."""
  if site == EMBEDDING:
    return "hook_embed"
  return _name(site, _TRANSFORMER_LENS)


def site_of_hugging_face(hook: str | None) -> str | None:
  """The inverse of `hugging_face`; None: not a site of ours."""
  return _site(hook or "", _HUGGING_FACE)


def site_of_transformer_lens(hook: str | None) -> str | None:
  """The inverse of `transformer_lens`; the stream before block L is res.L-1."""
  if hook == "hook_embed":
    return None  # scaled by sqrt(D), unlike our "embedding"
  before = re.fullmatch(r"blocks\.([1-9]\d*)\.hook_resid_pre", hook or "")
  if before:
    return f"res.{int(before[1]) - 1}"
  return _site(hook or "", _TRANSFORMER_LENS)


def _name(site: str, table: dict[str, str]) -> str | None:
  kind, _, layer = site.partition(".")
  return table[kind].format(layer) if kind in table and layer else None


def _site(hook: str, table: dict[str, str]) -> str | None:
  for kind, form in table.items():
    pattern = re.escape(form).replace(r"\{\}", r"(0|[1-9]\d*)")
    if found := re.fullmatch(pattern, hook):
      return f"{kind}.{found[1]}"
  return None


def model_id(label: str | None) -> str | None:
  """A model's id on the Hub: "gemma-3-1b" -> "google/gemma-3-1b-pt"."""
  return hub.ALIASES.get(label or "", label)


def model_label(name: str | None) -> str | None:
  """Our name of a model, however it is written: the inverse of `model_id`."""
  if not name:
    return None
  name = name.removeprefix("google/").replace("gemma-v3", "gemma-3")
  plain = name.removesuffix("-pt")
  return plain if plain in hub.ALIASES else name

"""A circuit as a result: JSON-ready, with all that figures and tables show."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax import artifacts, gemma
from gemmascope_jax.circuits.attribute import Circuit
from gemmascope_jax.circuits.direct import promoted
from gemmascope_jax.sae.sae import SAE

STUDY = "circuit"


def result(lm, saes: Mapping[str, SAE], circuit: Circuit) -> dict[str, Any]:
  """What a circuit says.

  Args:
    lm: the `Gemma` that it was found in.
    saes: the SAEs that it was found with, by site.
    circuit: of `attribute`.

  Returns:
    JSON-ready: "tokens" and "patch_tokens", display strings; "answer", "wrong"
    and its "probability" on the clean prompt; "value" and "patch_value" of the
    metric; "sites" in the model's order with their SAEs' widths and summed
    effects; "nodes", with the tokens that a latent's direction promotes;
    "edges", whose target is null for the metric; "agreement", see `attribute`.
  """
  pieces = lambda ids: lm.tokenizer.pieces([int(i) for i in ids])
  metric = circuit.metric
  of = lambda id_: (
    None if id_ is None else {"id": id_, "piece": pieces([id_])[0]}
  )
  loss = _loss(lm.config, lm.params, circuit.tokens, metric.answer)
  words = _promoted(lm, saes, circuit)
  return {
    "study": STUDY,
    "format": 1,
    "code": artifacts.code_version(),
    "model": {
      "label": lm.label,
      "name": lm.config.name,
      "layers": lm.config.num_layers,
      "weights_hash": lm.weights_hash,
    },
    "tokens": pieces(circuit.tokens),
    "token_ids": circuit.tokens.tolist(),
    "patch_tokens": (
      None if circuit.patch_tokens is None else pieces(circuit.patch_tokens)
    ),
    "answer": of(metric.answer),
    "wrong": of(metric.wrong),
    "probability": float(np.exp(-loss)),
    "softcap": metric.softcap and lm.config.final_softcap is not None,
    "value": circuit.value,
    "patch_value": circuit.patch_value,
    "steps": circuit.steps,
    "sites": [
      {"site": site, "width": circuit.widths.get(site), **totals}
      for site, totals in circuit.totals.items()
    ],
    "nodes": [
      {
        "site": node.site,
        "position": node.position,
        "latent": None if node.is_error else node.latent,
        "clean": node.clean,
        "patch": node.patch,
        "effect": node.effect,
        "ablated": node.ablated,
        "promotes": words.get((node.site, node.latent), []),
      }
      for node in circuit.nodes
    ],
    "edges": [
      {"source": edge.source, "target": edge.target, "weight": edge.weight}
      for edge in circuit.edges
    ],
    "agreement": circuit.agreement,
  }


def _promoted(lm, saes, circuit) -> dict[tuple[str, int], list[str]]:
  found = {}
  for site in circuit.widths:
    own = {n.latent for n in circuit.nodes if n.site == site and not n.is_error}
    latents = sorted(own)
    if latents:
      words = promoted(lm, site, saes[site], latents)
      found |= {
        (site, latent): each
        for latent, each in zip(latents, words, strict=True)
      }
  return found


@functools.partial(jax.jit, static_argnums=0)
def _loss(config, params, tokens, answer) -> jax.Array:
  """-log p of the answer after the last token."""
  out = gemma.forward(config, params, tokens[None], logits=False)
  asked = jnp.reshape(jnp.asarray(answer, jnp.int32), (1, 1))
  return gemma.token_losses(config, params, out.residual[:, -1:], asked)[0, 0]

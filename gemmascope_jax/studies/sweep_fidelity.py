"""The sparsity-fidelity study of a sweep: its SAEs and baselines at one site.

The paper's Figures 2 and 13 for the user's own SAEs, with what its curves
should be judged against: mean and zero ablation, PCA, and an SAE with the same
sparsity and no training.

Killed at any moment, it goes on with the next batch of sequences.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.sae.sae import SAE, SAEConfig
from gemmascope_jax.studies import measure, replacements, sparsity_fidelity

_ZERO = "zero ablation"
_MEAN = "mean ablation"
_SPECTRUM = (1, 2, 5, 10, 20, 50, 100, 200, 500)
# Rows of the store used to calibrate and to choose, not to evaluate.
_CALIBRATION_ROWS = 4_096
_COVARIANCE_ROWS = 200_000


@dataclasses.dataclass(frozen=True)
class Baselines:
  """What the SAEs are compared with.

  Attributes:
    components: of the PCA baseline.
    target_l0: the untrained SAE is matched to the member whose L0 is nearest
      to this.
  """

  components: int = 50
  target_l0: float = 50.0

  def __post_init__(self):
    if self.components < 1 or not self.target_l0 > 0:
      raise ValueError(
        f"components {self.components}, target_l0 {self.target_l0}: expected"
        " positive numbers"
      )


def run(
  lm,
  site: str,
  saes: Mapping[str, SAE],
  untrained: Sequence[SAE],
  store,
  tokens: np.ndarray,
  folder: str | os.PathLike,
  *,
  baselines: Baselines | None = None,
  batch: int = 8,
  together: bool = False,
  progress: bool = True,
) -> dict[str, Any]:
  """Evaluates a sweep on held-out tokens.

  Args:
    lm: a `Gemma` with all its layers.
    site: where the SAEs were trained.
    saes: finished members by name, in order.
    untrained: the same members before their first step.
    store: of training activations of this model and site: the baselines' mean
      and components, and the calibration of the untrained SAE.
    tokens: int32 [S, T], held-out sequences, each starting with BOS.
    folder: for what is done so far, so that a kill loses one batch at most.
    baselines: see `Baselines`.
    batch: sequences a forward pass.
    together: of several processes all call this, see `measure.measure`.
    progress: show a progress bar.

  Returns:
    {"clean_loss", "rows", "spectrum", "tokens"}: the study's part of the
    result file, see `report.results`.

  Raises:
    ValueError: an SAE or a store of another model, site or token policy.
  """
  baselines = baselines or Baselines()
  store.require_model(lm)
  # A store of chats excludes their prefix as well; BOS, EOS and padding have to
  # be the tokenizer's.
  policy = store.policy
  TokenPolicy.of(lm.tokenizer).require_same(
    dataclasses.replace(policy, excluded_sequences=()),
    "this evaluation",
    "the store",
  )
  tokens = sparsity_fidelity.check_tokens(lm, tokens)
  for sae in [*saes.values(), *untrained]:
    sparsity_fidelity.check_sae(lm, site, sae, policy)

  if baselines.components >= store.width(site):
    raise ValueError(
      f"PCA with {baselines.components} components at {site}, whose width is"
      f" {store.width(site)}: expected fewer, all of them reconstruct exactly"
    )
  mean, _ = store.statistics(site)
  rows = min(store.rows, _COVARIANCE_ROWS)
  vectors, variances = replacements.principal_components(
    replacements.covariance(
      lambda start, stop: store.read(site, start, stop), rows, mean
    )
  )
  sample = store.read(site, 0, min(store.rows, _CALIBRATION_ROWS))
  nearest, l0 = _nearest(saes, sample, baselines.target_l0)
  matched = replacements.match_l0(untrained[nearest], sample, l0)
  names = list(saes)
  pca = f"PCA, {baselines.components} components"
  blank = f"untrained SAE at the L0 of {names[nearest]}"
  stand_ins = {
    name: replacements.FromSAE(_on_device(sae)) for name, sae in saes.items()
  } | {
    blank: replacements.FromSAE(_on_device(matched)),
    pca: replacements.Projection(
      jnp.asarray(mean, jnp.float32),
      jnp.asarray(vectors[:, : baselines.components], jnp.float32),
    ),
    _MEAN: replacements.Constant(jnp.asarray(mean, jnp.float32)),
    _ZERO: replacements.Constant(jnp.zeros(len(mean), jnp.float32)),
  }
  record, records = measure.measure(
    lm,
    site,
    stand_ins,
    tokens,
    policy,
    mean,
    folder,
    batch=batch,
    together=together,
    progress=progress,
  )
  extra = {
    blank: {"of": names[nearest]},
    pca: {"components": baselines.components},
  }
  for name, sae in saes.items():
    extra[name] = _describe_sae(sae)
  return {
    "site": site,
    "clean_loss": record.clean().to_dict(),
    "rows": [
      _row(name, record, each, records[_ZERO]) | extra.get(name, {})
      for name, each in records.items()
    ],
    "spectrum": _spectrum(variances),
    "tokens": {
      "sequences": len(tokens),
      "length": int(tokens.shape[1]),
      "counted": int(record.count.sum()),
    },
  }


def _nearest(saes, sample, target) -> tuple[int, float]:
  """Position and L0, on the sample, of the SAE nearest the target L0."""
  found = []
  for sae in saes.values():
    latents = jax.jit(lambda s, x: (s.encode(x) > 0).sum())(sae, sample)
    found.append(float(latents) / len(sample))
  nearest = min(range(len(found)), key=lambda i: abs(found[i] - target))
  return nearest, found[nearest]


def _on_device(sae: SAE) -> SAE:
  # Without its provenance, which is static, all of one shape compile once.
  config = SAEConfig(k=sae.config.k)
  return jax.tree.map(jnp.asarray, sae.replace(config=config))


def _row(name, record, spliced, zero) -> dict[str, Any]:
  found = sparsity_fidelity.summarise(record, spliced, zero)
  return {
    "name": name,
    "kind": "baseline",
    "l0": found.l0 and found.l0.to_dict(),
    "fvu": found.fvu.to_dict(),
    "delta_loss": found.delta_loss.to_dict(),
    "loss_recovered": found.loss_recovered.to_dict(),
  }


def _describe_sae(sae: SAE) -> dict[str, Any]:
  details = sae.config.details()
  recipe = details.get("recipe", {})
  return {
    "kind": "sae",
    "family": sae.config.family,
    "width": sae.width,
    "sparsity_coefficient": recipe.get("sparsity_coefficient"),
    "train_tokens": details.get("rows"),
    "dead_fraction": details.get("dead_fraction"),
    "dead_after_rows": details.get("dead_after_rows"),
  }


def _spectrum(variances: np.ndarray) -> dict[str, list]:
  """FVU left by the first K components, from the store's covariance."""
  left = 1 - np.cumsum(variances) / variances.sum()
  components = [k for k in _SPECTRUM if k < len(variances)]
  return {
    "components": components,
    "fvu": [float(left[k - 1]) for k in components],
  }

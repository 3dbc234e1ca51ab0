"""Uniformity of active latent importance (Gemma Scope C.3, figure 16).

How evenly the latents that are active at a token share its prediction. With
L the logit of the correct next token less the mean logit, at the token itself,

  y     = f(x) * (W_dec grad_x L)         attribution of each latent  (eq. 12)
  p     = |y| / sum |y|
  r_L0  = exp(S(p)) / ||y||_0             S the entropy of p     (eqs. 13, 14)

so that r_L0 is the effective number of active latents over their number: 1 if
all have the same effect, 1 / ||y||_0 if one has all of it.

What the paper leaves open, and what is done here:

* Whose logits. `target="own"`: L of the token itself, as the definition reads.
  `target="all"`: the sum of L over the token and all later ones of its
  sequence, so that effects through attention count as well.
* Where the gradient is taken. `at="x"`: at the activation of the model as it
  is, so that the SAEs of a site share one backward pass. `at="x_hat"`: at the
  SAE's reconstruction, spliced in.
* Whether logits are soft-capped. They are, as the model is used;
  `softcap=False` takes them before the cap.

Letters: S sequences, T tokens, D width of the site, M latents, K SAEs.
"""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from gemmascope_jax import artifacts
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.sae.sae import SAE, SAEConfig
from gemmascope_jax.studies import (
  attribution,
  parts,
  sparsity_fidelity,
  splice,
)
from gemmascope_jax.studies.estimate import combination, ratio
from gemmascope_jax.studies.findings import Finding

TARGETS = ("own", "all")
POINTS = ("x", "x_hat")

_SURE = 2.0  # standard errors
_FLAT = 0.02  # a change of r_L0 for ten times the L0 that is none
_EQUAL = 0.05  # r_L0; the paper's axis runs from 0.45 to 0.70


def run(
  lm,
  saes: Mapping[str, Mapping[str, SAE]],
  tokens,
  *,
  target: str = "own",
  at: str = "x",
  softcap: bool = True,
  policy: TokenPolicy | None = None,
  batch: int = 8,
  folder: str | os.PathLike | None = None,
  progress: bool = True,
) -> dict[str, Any]:
  """r_L0 of SAEs at one or more sites.

  A token counts if the policy keeps it and the token after it is not padding.
  Tokens whose latents are all inactive, or have no effect at all, have no
  r_L0; their number is reported.

  Args:
    lm: a `Gemma` with all its layers.
    saes: for each site, its SAEs by name.
    tokens: int [S, T], each sequence starting with BOS.
    target: "own" or "all", see the module.
    at: "x" or "x_hat", see the module.
    softcap: whether logits are soft-capped.
    policy: default: the tokenizer's, `TokenPolicy.of(lm.tokenizer)`.
    batch: sequences a pass.
    folder: for what is done so far; a run that was killed goes on from there.
    progress: show a progress bar.

  Returns:
    {"study": "uniformity", "format": 1, "rows", "trends", ...}: a row an SAE
    with `l0`, `r_l0` and `effective_latents` (exp S) as estimates over
    sequences, and for each site, family and width with SAEs of at least two
    L0s the trend of r_L0, see `trends`.

  Raises:
    ValueError: an unknown target or point, or an SAE or tokens that do not fit
      the model.
  """
  if target not in TARGETS or at not in POINTS:
    raise ValueError(
      f"target {target!r}, at {at!r}: expected target one of"
      f" {', '.join(TARGETS)}, and at one of {', '.join(POINTS)}"
    )
  if not any(saes.values()):
    raise ValueError("no SAE: expected at least one at one site")
  policy = policy or TokenPolicy.of(lm.tokenizer)
  tokens = sparsity_fidelity.check_tokens(lm, tokens)
  for site, members in saes.items():
    for sae in members.values():
      sparsity_fidelity.check_sae(lm, site, sae, policy)
  batches = splice.batches(lm.params, tokens, batch, policy.pad_id)
  bar = tqdm.tqdm(
    total=len(batches) * len(saes),
    desc="uniformity",
    unit="batch",
    disable=not progress or jax.process_index() > 0,
  )
  rows, records = [], []
  for site, members in saes.items():
    place = (
      None
      if folder is None
      else pathlib.Path(folder)
      / _key(lm, site, members, tokens, policy, batch, target, at, softcap)
    )
    members = {name: _on_device(sae) for name, sae in members.items()}
    found = []
    for number, part in enumerate(batches):
      found.append(
        parts.cached(
          place and place.with_name(f"{place.name}_{number:05d}.npz"),
          functools.partial(
            attribution.batch_sums,
            lm,
            site,
            members,
            part,
            policy,
            target,
            at,
            softcap,
          ),
        )
      )
      bar.update()
    for name, sae in saes[site].items():
      sums = {
        key: np.concatenate([each[f"{name}|{key}"] for each in found])
        for key in attribution.SUMS
      }
      records.append(sums)
      rows.append(_row(site, name, sae, sums))
  bar.close()
  return {
    "study": "uniformity",
    "format": 1,
    "model": {"label": lm.label, "weights_hash": lm.weights_hash},
    "target": target,
    "at": at,
    "softcap": softcap and lm.config.final_softcap is not None,
    "tokens": {"sequences": len(tokens), "length": int(tokens.shape[1])},
    "token_policy": policy.to_dict(),
    "rows": rows,
    "trends": trends(rows, records),
  }


def _row(site, name, sae, sums) -> dict[str, Any]:
  measured = sums["measured"].sum() > 0
  of = lambda key: ratio(sums[key], sums["measured"]).to_dict()
  return {
    "site": site,
    "name": name,
    "family": sae.config.family,
    "width": sae.width,
    "l0": ratio(sums["active"], sums["count"]).to_dict(),
    "r_l0": of("r") if measured else None,
    "effective_latents": of("effective") if measured else None,
    "tokens": int(sums["count"].sum()),
    "silent_tokens": int(sums["silent"].sum()),
    "flat_tokens": int(sums["flat"].sum()),
  }


def trends(rows: list[dict], records: list[dict]) -> list[dict[str, Any]]:
  """How r_L0 depends on L0, for each site, family and width.

  Least squares of r_L0 on log10(L0) over the SAEs, all of equal weight; the
  standard errors are over sequences, which all SAEs share.

  Args:
    rows: as `run` returns them.
    records: their per-sequence sums, see `attribution.batch_sums`.

  Returns:
    For each group with at least two different L0s its `slope` (of r_L0, for ten
    times the L0), `level` (at `level_l0`, the geometric mean L0 at that site)
    and number of SAEs.
  """
  groups: dict[tuple, list[int]] = {}
  for i, row in enumerate(rows):
    if row["r_l0"] is not None:
      key = (row["site"], row["family"], row["width"])
      groups.setdefault(key, []).append(i)
  found = []
  for (site, family, width), members in groups.items():
    l0 = {
      i: np.log10(rows[i]["l0"]["mean"])
      for i in range(len(rows))
      if rows[i]["site"] == site and rows[i]["r_l0"] is not None
    }
    reference = np.mean(list(l0.values()))
    x = np.array([l0[i] for i in members])
    centred = x - x.mean()
    spread = np.square(centred).sum()
    if len(members) < 2 or spread < 1e-6:
      continue
    slope = centred / spread
    level = 1 / len(x) + (reference - x.mean()) * slope
    stack = lambda key, members=members: np.stack(
      [records[i][key] for i in members]
    )
    r, measured = stack("r"), stack("measured")
    found.append(
      {
        "site": site,
        "family": family,
        "width": width,
        "saes": len(members),
        "slope": combination(slope, r, measured).to_dict(),
        "level": combination(level, r, measured).to_dict(),
        "level_l0": float(10**reference),
      }
    )
  return found


def findings(result: dict[str, Any]) -> list[Finding]:
  """What a result says about figure 16.

  The direction in which r_L0 goes is not taken for granted: the text calls
  effects more diffuse the more latents are active, but which way the figure's
  curves go is not known to us.
  """
  return [
    _direction(result["trends"]),
    _residual_most(result["trends"]),
    _width(result["trends"]),
  ]


def _direction(trends) -> Finding:
  """One direction in all groups?"""
  z = [_z(t["slope"]) for t in trends]
  sure = [t for t, each in zip(trends, z, strict=True) if abs(each) > _SURE]
  signs = {t["slope"]["mean"] > 0 for t in sure}
  flat = trends and all(_bound(t["slope"]) < _FLAT for t in trends)
  verdict = "too little data"
  if trends and len(sure) == len(trends) and len(signs) == 1:
    verdict = "agrees"
  elif len(signs) == 2 or flat:
    verdict = "disagrees"
  words = "; ".join(
    f"{_group(t)}: r_L0 {_change(t['slope'])} for ten times the L0"
    f" ({t['saes']} SAEs)"
    for t in trends
  )
  return Finding(
    "16",
    "How diffuse the attributed effect is changes in one direction as more"
    " latents are active (the text: more diffuse).",
    words or "No site with SAEs of two different L0s.",
    verdict,
  )


def _residual_most(trends) -> Finding:
  """Is the trend strongest at residual sites?"""
  of = lambda residual: [
    t["slope"] for t in trends if t["site"].startswith("res.") == residual
  ]
  residual, others = (_mean_size(of(kind)) for kind in (True, False))
  claim = "The change is strongest for SAEs of the residual stream."
  if residual is None or others is None:
    seen = "No trend at both a residual and another site."
    return Finding("16", claim, seen, "too little data")
  gap, error = residual[0] - others[0], np.hypot(residual[1], others[1])
  verdict = "too little data"
  if abs(gap) > _SURE * error:
    verdict = "agrees" if gap > 0 else "disagrees"
  seen = (
    "Mean size of the change of r_L0 for ten times the L0:"
    f" {residual[0]:.3f} ± {residual[1]:.3f} at residual sites,"
    f" {others[0]:.3f} ± {others[1]:.3f} at others."
  )
  return Finding("16", claim, seen, verdict)


def _mean_size(slopes) -> tuple[float, float] | None:
  """Mean |slope| and its standard error, as if sites were independent."""
  if not slopes or any(slope["stderr"] is None for slope in slopes):
    return None
  errors = [slope["stderr"] for slope in slopes]
  size = np.mean([abs(slope["mean"]) for slope in slopes])
  return float(size), float(np.sqrt(np.square(errors).sum()) / len(errors))


def _width(trends) -> Finding:
  """Does r_L0 at equal L0 depend on the width?"""
  gaps = []
  for one, other in itertools.combinations(trends, 2):
    same = all(one[key] == other[key] for key in ("site", "family"))
    errors = one["level"]["stderr"], other["level"]["stderr"]
    if not same or None in errors:
      continue
    gap = other["level"]["mean"] - one["level"]["mean"]
    # As if they were independent: they share their text, so it is less.
    gaps.append((one, other, gap, float(np.hypot(*errors))))
  verdict = "too little data"
  if gaps and all(abs(g) + _SURE * e < _EQUAL for _, _, g, e in gaps):
    verdict = "agrees"
  elif any(abs(g) - _SURE * e > _EQUAL for _, _, g, e in gaps):
    verdict = "disagrees"
  words = "; ".join(
    f"{one['site']}, L0 {one['level_l0']:.0f}: r_L0 of {other['width']:,}"
    f" latents less that of {one['width']:,}: {gap:+.3f} ± {error:.3f}"
    for one, other, gap, error in gaps
  )
  return Finding(
    "16",
    "At equal L0 r_L0 does not depend on the dictionary's width (here: by less"
    f" than {_EQUAL}).",
    words or "No site with trends of two widths.",
    verdict,
  )


def _z(value) -> float:
  return value["mean"] / value["stderr"] if value["stderr"] else 0.0


def _bound(value) -> float:
  """What the size of a value is below, almost surely."""
  if value["stderr"] is None:
    return np.inf
  return abs(value["mean"]) + _SURE * value["stderr"]


def _group(trend) -> str:
  return f"{trend['site']}, {trend['family']}, {trend['width']:,} latents"


def _change(slope) -> str:
  word = "rises" if slope["mean"] > 0 else "falls"
  if slope["stderr"] is None:
    return f"{word} by {abs(slope['mean']):.3f} (one sequence: no error)"
  return (
    f"{word} by {abs(slope['mean']):.3f} ± {slope['stderr']:.3f}"
    f" ({abs(_z(slope)):.1f} standard errors from no change)"
  )


def _on_device(sae: SAE) -> SAE:
  # Without its provenance, which is static, all of one shape compile once.
  config = SAEConfig(k=sae.config.k)
  return jax.tree.map(jnp.asarray, sae.replace(config=config))


def _key(lm, site, members, tokens, policy, batch, target, at, softcap) -> str:
  return artifacts.fingerprint(
    [
      "uniformity",
      lm.weights_hash,
      str(jax.tree.leaves(lm.params)[0].dtype),
      artifacts.code_version(),
      site,
      artifacts.sha256_arrays([tokens]),
      policy,
      [batch, target, at, softcap],
      [
        [name, sae.config.k, artifacts.sha256_arrays(jax.tree.leaves(sae))]
        for name, sae in members.items()
      ],
    ]
  )

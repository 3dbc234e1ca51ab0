"""Steering by one command: texts side by side, and a comparison of methods."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gemmascope_jax import artifacts, steering
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.data.text import texts
from gemmascope_jax.experiment import bench, settings
from gemmascope_jax.experiment.settings import Config
from gemmascope_jax.report import plotting
from gemmascope_jax.report.study_figures import steering as figure
from gemmascope_jax.sae.sae import SAE, weights_hash
from gemmascope_jax.steering import activations, edits, methods, prompts
from gemmascope_jax.steering.edits import Edit
from gemmascope_jax.studies import subjects

METHODS = ("add", "clamp", "ablate")
RESULT, FIGURE = "steering.json", "steering.png"
_PARTS = "parts"


@dataclasses.dataclass(frozen=True, eq=False)
class Latent:
  """A latent of an SAE, and the model that it is to steer.

  Attributes:
    lm: a `Gemma` with all its layers.
    sae: the SAE, or transcoder.
    latent: which of its latents.
    policy: tokens that are never edited or counted.
  """

  lm: Any
  sae: SAE
  latent: int
  policy: TokenPolicy


def find(config: Config, given: str | os.PathLike, latent: int) -> Latent:
  """Opens an SAE and the model; refuses what does not fit together.

  Args:
    config: says which model, and whether it is chats that it was trained on.
    given: the SAE, "PATH" or "SITE=PATH"; see `sae.load`.
    latent: which.

  Raises:
    FileNotFoundError: no SAE there.
    ValueError: no such latent, or an SAE of another model or of no known site.
  """
  one = subjects.read(os.fspath(given))
  found = one.sae
  edits.reader(found, latent)  # before anything heavy is read
  lm = settings.load_lm(config)
  policy = settings.token_policy(config, lm.tokenizer)
  one.check(lm, policy)
  return Latent(lm, found, latent, policy)


def edit(
  one: Latent, method: str, strength: float, unit: float
) -> dict[str, Edit]:
  """The edits of a method; "ablate" knows no strength.

  Raises:
    ValueError: an unknown method, and what the edits refuse.
  """
  if method == "add":
    made = edits.add(one.sae, one.latent, strength, unit=unit)
  elif method == "clamp":
    made = edits.clamp(one.sae, one.latent, strength, unit=unit)
  elif method == "ablate":
    made = edits.ablate(one.sae, one.latent)
  else:
    raise ValueError(f"method {method!r}: expected one of {', '.join(METHODS)}")
  return {edits.site_of(one.sae): made}


def say(
  one: Latent, asked: Sequence[str], made: dict[str, Edit], **options: Any
) -> list[tuple[str, str, str]]:
  """Answers without and with edits, from the same randomness.

  Args:
    one: see `find`.
    asked: prompts.
    made: the edits.
    **options: of `steering.generate`.

  Returns:
    (prompt, unsteered, steered) of each answer.

  Raises:
    ValueError: an empty prompt, and what `steering.generate` refuses.
  """
  for prompt in asked:
    if not prompt.strip():
      raise ValueError(
        f"prompt {prompt!r} is empty: expected a text to go on with, as the"
        " model's first word would not be steered (no token before it is)"
      )
  plain, steered = (
    steering.generate(one.lm, asked, some, policy=one.policy, **options)
    for some in (None, made)
  )
  repeated = [p for p in asked for _ in range(options.get("samples", 1))]
  return list(zip(repeated, plain.texts, steered.texts, strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
  """Held-out text, in two parts that share no sequence.

  Attributes:
    scored: int32 [S, T], on which the steered model's loss is measured.
    read: int32 [S', T], on which the latent is.
    values: float32 [S', T], the latent there.
  """

  scored: np.ndarray
  read: np.ndarray
  values: np.ndarray

  @property
  def unit(self) -> float:
    """The latent's typical maximum."""
    return float(activations.typical_maxima(self.values[..., None])[0])


def read_text(config: Config, one: Latent, scored: int = 16) -> Text:
  """Held-out text of the config's sources, and the latent on it.

  Args:
    config: says which; `evaluate.sequences` in all.
    one: see `find`.
    scored: sequences of it that are kept for losses.

  Raises:
    ValueError: too few sequences; and what reading texts raises.
  """
  if config.evaluate.sequences <= scored:
    raise ValueError(
      f"{config.evaluate.sequences} sequences of text: expected more than the"
      f" {scored} on which losses are measured"
    )
  tokens = bench.held_out(config, one.lm, None)
  read = tokens[scored:]
  values = activations.values(
    one.lm,
    one.sae,
    one.latent,
    read,
    one.policy,
    batch=config.evaluate.batch,
  )
  return Text(tokens[:scored], read, values[..., 0])


def compare(
  config: Config,
  one: Latent,
  text: Text,
  out: str | os.PathLike,
  *,
  strengths: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0),
  unit: float | None = None,
  positive: Sequence[str] = (),
  negative: Sequence[str] = (),
  asked: Sequence[str] = prompts.PROMPTS,
  words: Sequence[str] = (),
  **options: Any,
) -> dict[str, Any]:
  """Adding, clamping, a mean difference and a random direction, compared.

  Writes `steering.json` and `steering.png`.

  Args:
    config: the settings.
    one: see `find`.
    text: see `read_text`.
    out: folder to write to; a killed comparison goes on there.
    strengths: of every method, ascending.
    unit: activation that strength 1 is; None: the typical maximum.
    positive: texts that have the concept; none: windows in which the latent is
      strongest.
    negative: texts that lack it; none: windows in which it is 0.
    asked: prompts.
    words: the concept's.
    **options: of `steering.compare`.

  Returns:
    The result.

  Raises:
    ValueError: one of the two sets of texts without the other; and what
      `steering.compare` refuses.
    ImportError: matplotlib is not installed; the result is written before.
  """
  if bool(positive) != bool(negative):
    raise ValueError(
      f"{len(positive)} positive and {len(negative)} negative texts: expected"
      " both sets, or neither"
    )
  lm, out = one.lm, pathlib.Path(out)
  unit = text.unit if unit is None else unit
  if positive:
    sets = [steering.encode(lm, some)[0] for some in (positive, negative)]
    about = "given texts"
  else:
    sets = steering.contrast(
      text.read,
      text.values,
      one.policy,
      bos_id=lm.tokenizer.bos_id,
      seed=config.seed,
    )
    about = "windows in which the latent is strongest, and others"
  site = edits.site_of(one.sae)
  difference = steering.mean_difference(
    lm, site, *sets, one.policy, batch=config.evaluate.batch
  )
  norm = unit * float(np.linalg.norm(one.sae.params.w_dec[one.latent]))
  tried = [
    methods.adding(one.sae, one.latent, unit, strengths),
    methods.mean_differences(difference, strengths),
    methods.random_direction(
      site, one.sae.target_width, norm, config.seed, strengths
    ),
  ]
  if one.sae.config.target_site in (None, one.sae.config.site):
    # A transcoder's latents can't be clamped where they write.
    tried.insert(1, methods.clamping(one.sae, one.latent, unit, strengths))
  found = steering.compare(
    lm,
    tried,
    asked,
    text.scored,
    one.policy,
    words=words,
    sae=one.sae,
    latent=one.latent,
    folder=out / _PARTS,
    progress=config.progress,
    **options,
  )
  names = settings.sources(config)
  result = found | {
    "contrast": {
      "about": about,
      "texts": [difference.positive, difference.negative],
      "tokens": list(difference.tokens),
      "norm": difference.norm,
      "noise": difference.noise,
    },
    "unit": unit,
    "sae": {
      "site": one.sae.config.site,
      "target_site": one.sae.config.target_site,
      "family": one.sae.config.family,
      "width": one.sae.width,
      "hash": weights_hash(one.sae),
    },
    "tokens": {
      "sequences": len(text.scored),
      "length": int(text.scored.shape[1]),
      "counted": int(one.policy.keep(text.scored).sum()),
      "split": "held_out",
      "sources": list(names),
      "licences": {name: texts.licence(name) for name in names},
      "hash": artifacts.sha256_arrays([text.scored]),
    },
    "model": {
      "label": lm.label,
      "weights_hash": lm.weights_hash,
      "tokenizer": lm.tokenizer.fingerprint,
    },
    "token_policy": one.policy.to_dict(),
    "config": settings.resolved(config),
    "code": artifacts.code_version(),
  }
  artifacts.write_json(out / RESULT, result)
  with plotting.style():
    drawn = figure.draw(artifacts.read_json(out / RESULT))["steering"]
    artifacts.write_bytes(out / FIGURE, plotting.png(drawn))
  return result

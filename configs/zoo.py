"""A small zoo for every study of the paper, on a laptop.

  python -m experiments.harvest --config=configs/zoo.py
  python -m experiments.finetune
  python -m experiments.train --config=configs/zoo.py
  python -m experiments.evaluate --config=configs/zoo.py --study=all

As the quickstart, with a third less training for each SAE: JumpReLU SAEs of
three widths and several lambdas, Gated and TopK ones beside them, SAEs of an
MLP's and an attention's output, transcoders with and without a skip connection,
and SAEs of a fine-tuned model.
"""

from configs import quickstart

_LAYER = 5
_LATE = 12  # within the blocks that the fine-tune changes
_WIDTHS = (1024, 4096, 16384)
_LAMBDAS = (5e-5, 1.2e-4)  # of every width


def get_config():
  config = quickstart.get_config()
  config.workdir = "runs/zoo"
  kinds = ("res", "mlp", "att", "mlp_in")
  config.harvest.sites = tuple(f"{kind}.{_LAYER}" for kind in kinds)
  config.harvest.sites += (f"res.{_LATE}",)
  config.train.tokens = 327_680
  config.train.sparsity_coefficients = ()

  jumprelu = [
    {"width": width, "sparsity_coefficient": coefficient}
    for width in _WIDTHS
    for coefficient in _LAMBDAS
  ]
  jumprelu += [{"sparsity_coefficient": value} for value in (1.5e-5, 3e-4)]
  others = [
    {"family": "topk", "k": k, "aux_coefficient": 1 / 32} for k in (24, 42)
  ]
  others += [
    {"family": "gated", "sparsity_coefficient": value}
    for value in (2e-2, 4.5e-2)
  ]
  sweep = tuple({"sparsity_coefficient": value} for value in (3e-5, 1e-4, 3e-4))
  transcoder = {
    "train.site": f"mlp_in.{_LAYER}",
    "train.target_site": f"mlp.{_LAYER}",
    "train.members": tuple(
      {"sparsity_coefficient": value} for value in (1e-4, 3e-4, 1e-3)
    ),
    "recipe.encoder_init": "he_uniform",  # GS app. B, as the next
    "recipe.pre_encoder_bias": False,
    # The mean is 96 % of this input, and the output a thousand times as large:
    # lambda and Adam's steps would mean other things than for an SAE.
    "recipe.centre_inputs": True,
    "recipe.normalise": "each",
  }
  late = {
    "train.site": f"res.{_LATE}",
    "train.members": tuple({"sparsity_coefficient": c} for c in _LAMBDAS),
  }
  config.runs = (
    {"name": "res", "train.members": (*jumprelu, *others)},
    {"name": "mlp", "train.site": f"mlp.{_LAYER}", "train.members": sweep},
    {"name": "att", "train.site": f"att.{_LAYER}", "train.members": sweep},
    {"name": "transcoder"} | transcoder,
    {"name": "skip_transcoder", "recipe.skip": True} | transcoder,
    {"name": "late"} | late,
    # Of the fine-tuned model, on the same documents as a user's turns.
    {
      "name": "tuned",
      "lm.delta": "runs/finetune",
      "data.chat": True,
      "harvest.sites": (f"res.{_LATE}",),
    }
    | late,
  )

  config.evaluate.sequences = 32
  config.evaluate.latents = 24
  config.studies.subset_sequences = 12
  config.studies.instruct.delta = "runs/finetune"
  config.studies.instruct.prompts = "dialogue"
  config.studies.instruct.prompt_count = 64
  config.studies.instruct.per_prompt = 1
  config.studies.instruct.new_tokens = 48
  return config

"""Other families on Gemma Scope's data: what JumpReLU is compared with.

  python -m experiments.train --config=configs/baselines.py:topk,res.20,131k
  python -m experiments.train --config=configs/baselines.py:gated

FAMILY,SITE,WIDTH, the latter two of configs/gemma2_9b.py; without them
res.20,131k, as in the JumpReLU paper's comparison (2407.14435, section 5: 131K
latents on Gemma 2 9B). Families: gated, topk, batch_topk, relu, random_decoder.
Another model: --config.lm.source=..., with its sites.

JR = that paper, GATED = 2404.16014, Gao = 2406.04093, Bussmann = 2412.06410. All
else is Gemma Scope's recipe, so that families differ in nothing else; GATED
itself used a learning rate of 3e-4.
"""

from configs import gemma2_9b

# An L1 penalty keeps a latent whose size is above lambda / 2, an L0 penalty one
# whose size is above the root of its lambda: 2 sqrt(lambda) asks for about the
# same latents. These are those of the default's 3e-4, 6e-4 and 1e-3.
_L1_COEFFICIENTS = (3.5e-2, 4.9e-2, 6.3e-2)
_KS = (20, 50, 100, 200)  # chosen: the range of the released L0s
FAMILIES = ("gated", "topk", "batch_topk", "relu", "random_decoder")


def get_config(which="gated"):
  family, _, entry = which.partition(",")
  if family not in FAMILIES:
    raise ValueError(
      f"family {family!r}: expected one of {', '.join(FAMILIES)}"
    )
  config = gemma2_9b.get_config(entry or "res.20,131k")
  config.workdir += f"_{family}"
  if family == "random_decoder":
    # What is left when only encoder, biases and thresholds learn.
    config.recipe.frozen = ("w_dec",)
    return config
  config.recipe.family = family
  if family in ("gated", "relu"):
    config.train.sparsity_coefficients = _L1_COEFFICIENTS
    return config
  config.train.sparsity_coefficients = ()
  config.train.members = tuple({"k": k} for k in _KS)
  config.recipe.aux_k = 512  # Gao A.2, JR
  config.recipe.aux_coefficient = 1 / 32  # Gao A.2, JR
  config.recipe.dead_after_rows = 10_000_000  # Gao A.2
  return config

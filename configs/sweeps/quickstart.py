"""A sweep on a laptop: two sites, two widths, and target L0s beside lambdas.

  python -m launch.sweep --sweep=configs/sweeps/quickstart.py --root=runs/sweep

Twelve SAEs of the packaged Gemma 3 270M, from one harvest, by one run a site.
The recipe is the quickstart's, with half of its training.
"""

from launch.sweeps import grid

CONFIG = "configs/quickstart.py"


def get_sweep():
  narrow = grid.axis("recipe.width", (1024, 4096))
  lambdas = grid.axis("recipe.sparsity_coefficient", (5e-5, 1.2e-4, 3e-4))
  return grid.product(
    grid.axis("train.site", ("res.5", "mlp.5")),
    [{"train.tokens": 229_376, "train.sparsity_coefficients": ()}],
    narrow,
    lambdas,
  )

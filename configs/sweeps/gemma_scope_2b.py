"""Gemma Scope's SAEs and transcoders of Gemma 2 2B: Table 1 whole.

  python -m launch.sweep --sweep=configs/sweeps/gemma_scope_2b.py --dry_run \\
    --root=runs/gemma_scope_2b

Each entry of the table with the lambdas of configs/default.py, which stand in
for those that the paper does not publish.
"""

from configs import gemma_scope

CONFIG = "configs/gemma2_2b.py"
# Adam's two moments, gradients and weights of so many latents are 27 GiB at
# width 2304: members of one run on one accelerator, larger ones alone.
LATENTS_PER_RUN = 3 * 2**17
_MODEL = "gemma-2-2b"


def get_sweep():
  return [
    gemma_scope.overrides(_MODEL, entry)
    for entry in gemma_scope.table_1(_MODEL)
  ]

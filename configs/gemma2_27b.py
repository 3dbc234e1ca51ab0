"""Gemma Scope's SAEs of Gemma 2 27B: the paper's recipe.

  python -m experiments.harvest --config=configs/gemma2_27b.py:res.22,131k
  python -m experiments.train --config=configs/gemma2_27b.py:res.22,131k

res.10, res.22 and res.34 at 131k. Without a choice: res.22,131k.
"""

from configs import gemma_scope


def get_config(which="res.22,131k"):
  return gemma_scope.config("gemma-2-27b", which)

"""Gemma Scope's SAEs of Gemma 2 9B: the paper's recipe.

  python -m experiments.harvest --config=configs/gemma2_9b.py:res.20,131k
  python -m experiments.train --config=configs/gemma2_9b.py:res.20,131k

res, mlp and att of every layer at 16k and 131k; and res.20 at 32k, 65k, 262k,
524k, and at 1m with res.9 and res.31. Without a choice: res.20,16k.

The paper trains 16k with all devices along data, the others with all along
latents (4.1): --config.mesh.data=8, or --config.mesh.model=8.
"""

from configs import gemma_scope


def get_config(which="res.20,16k"):
  return gemma_scope.config("gemma-2-9b", which)

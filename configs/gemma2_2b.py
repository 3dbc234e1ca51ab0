"""Gemma Scope's SAEs and transcoders of Gemma 2 2B: the paper's recipe.

  python -m experiments.harvest --config=configs/gemma2_2b.py:res.12,16k
  python -m experiments.train --config=configs/gemma2_2b.py:res.12,16k
  python -m experiments.evaluate --config=configs/gemma2_2b.py:res.12,16k
  python -m experiments.report --config=configs/gemma2_2b.py:res.12,16k

res, mlp, att and transcoder of every layer at 16k; the first three at 65k; and
res.12 at 32k, 131k, 262k, 524k, and at 1m with res.5 and res.19. Without a
choice: res.12,16k.

Needs access to google/gemma-2-2b on the Hugging Face Hub (the command says how
to get it) or a local copy: --config.lm.source=/path/to/gemma-2-2b.

4 billion tokens are 34 TiB of stored activations. For a first look on one GPU:

  --config.harvest.rows=20000000 --config.train.tokens=20000000 \\
  --config.evaluate.sequences=128

The values for runs that short are discussed in configs/quickstart.py.
"""

from configs import gemma_scope


def get_config(which="res.12,16k"):
  return gemma_scope.config("gemma-2-2b", which)

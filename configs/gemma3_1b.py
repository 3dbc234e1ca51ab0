"""Gemma Scope 2's SAEs, transcoders and crosscoders of Gemma 3 1B.

  python -m experiments.harvest --config=configs/gemma3_1b.py:res.13,65k
  python -m experiments.train --config=configs/gemma3_1b.py:res.13,65k

res, mlp, att, transcoder and skip_transcoder of every layer at 16k and 262k, of
layers 7, 13, 17 and 22 at 65k too, res of those at 1m; crosscoder of those at
65k, 262k, 524k, 1m. Without a choice: res.13,16k. configs/gemma_scope_2.py says
what is the report's and what is chosen.
"""

from configs import gemma_scope_2


def get_config(which="res.13,16k"):
  return gemma_scope_2.config("gemma-3-1b", which)

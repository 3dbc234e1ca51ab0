"""Gemma Scope 2's SAEs, transcoders and crosscoders of Gemma 3 27B.

  python -m experiments.harvest --config=configs/gemma3_27b.py:res.31,65k
  python -m experiments.train --config=configs/gemma3_27b.py:res.31,65k

res, mlp, att, transcoder and skip_transcoder of every layer at 16k and 262k, of
layers 16, 31, 40 and 53 at 65k too, res of those at 1m; crosscoder of those at
65k, 262k, 524k, 1m. Without a choice: res.31,16k. configs/gemma_scope_2.py says
what is the report's and what is chosen.
"""

from configs import gemma_scope_2


def get_config(which="res.31,16k"):
  return gemma_scope_2.config("gemma-3-27b", which)

"""Gemma Scope's SAEs of the instruction-tuned Gemma 2 9B (section 4.5).

  python -m experiments.harvest --config=configs/gemma2_9b_it.py:res.20,16k
  python -m experiments.train --config=configs/gemma2_9b_it.py:res.20,16k

res.9, res.20 and res.31 at 16k and 131k. Without a choice: res.20,16k. Trained
on the same documents as the base model's, each as a user's turn with an empty
answer begun; the prefix before the document is not trained on.
"""

from configs import gemma_scope


def get_config(which="res.20,16k"):
  return gemma_scope.config("gemma-2-9b-it", which)

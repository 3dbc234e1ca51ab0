"""Gemma 2 2B, residual stream after layer 12, width 16K: the paper's recipe.

  python -m experiments.harvest --config=configs/gemma2_2b.py
  python -m experiments.train --config=configs/gemma2_2b.py
  python -m experiments.evaluate --config=configs/gemma2_2b.py
  python -m experiments.report --config=configs/gemma2_2b.py

Needs access to google/gemma-2-2b on the Hugging Face Hub (the command says how
to get it) or a local copy: --config.lm.source=/path/to/gemma-2-2b.

All values are `configs/default.py`'s, which are the paper's: 4 billion tokens,
which is 34 TiB of stored activations. For a first look on one GPU:

  --config.harvest.rows=20000000 --config.train.tokens=20000000 \\
  --config.evaluate.sequences=128

The values for runs that short are discussed in configs/quickstart.py.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.workdir = "runs/gemma2_2b"
  return config

"""A short supervised fine-tune of a base model on chats, kept as a delta.

For studies of instruction-tuned models where no such model can be had: the
result follows the chat's format and ends its turns, and is nothing more. Knows
no SAE.

`tuning` trains the last blocks, `scoring` says how well the model predicts its
turns, `delta` keeps what changed and adds it to the model again, `run` does all
of it in a folder.
"""

from gemmascope_jax.finetune.delta import FILE, apply
from gemmascope_jax.finetune.run import run
from gemmascope_jax.finetune.scoring import Scores, score
from gemmascope_jax.finetune.tuning import Recipe, tune

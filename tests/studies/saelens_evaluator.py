"""SAELens's own evaluation of an SAE; runs where SAELens is installed.

  python saelens_evaluator.py FOLDER

reads FOLDER/model, a Hugging Face model, and FOLDER/problem.npz, and writes
FOLDER/answer.npz: "NAME of CASE" -> number, or number of each token.
"""

import itertools
import pathlib
import sys

import numpy as np
import torch
import transformers
from sae_lens import evals, load_model
from sae_lens.saes import jumprelu_sae, sae
from sae_lens.training import activation_scaler


class _Store:
  """As much of an ActivationsStore as the evaluation uses."""

  def __init__(self, tokens):
    self._tokens, self._start = tokens, 0

  def get_batch_tokens(self, batch_size):
    start, self._start = self._start, self._start + batch_size
    return self._tokens[start : self._start]


def _evaluate(model, dictionary, tokens, ignored, batch):
  scaler = activation_scaler.ActivationScaler()
  batches = len(tokens) // batch
  losses = evals.get_downstream_reconstruction_metrics(
    dictionary,
    model,
    _Store(tokens),
    scaler,
    compute_kl=True,
    compute_ce_loss=True,
    n_batches=batches,
    eval_batch_size_prompts=batch,
    ignore_tokens=ignored,
  )
  others, _ = evals.get_sparsity_and_variance_metrics(
    dictionary,
    model,
    _Store(tokens),
    scaler,
    n_batches=batches,
    compute_l2_norms=True,
    compute_sparsity_metrics=True,
    compute_variance_metrics=True,
    compute_featurewise_density_statistics=True,
    eval_batch_size_prompts=batch,
    model_kwargs={},
    ignore_tokens=ignored,
  )
  each = evals.get_recons_loss(
    dictionary,
    model,
    scaler,
    tokens,
    compute_kl=True,
    compute_ce_loss=True,
    ignore_tokens=ignored,
  )
  each = {f"each {name}": value.numpy() for name, value in each.items()}
  return losses | others | each


@torch.no_grad()
def main(folder):
  problem = np.load(folder / "problem.npz")
  hook = str(problem["hook"])
  language_model = transformers.AutoModelForCausalLM.from_pretrained(
    folder / "model", attn_implementation="eager", dtype=torch.float32
  ).eval()
  model = load_model.HookedProxyLM(language_model, None, hook_names=[hook])
  latents, width = problem["w_dec"].shape
  dictionary = jumprelu_sae.JumpReLUSAE(
    jumprelu_sae.JumpReLUSAEConfig(
      d_in=width,
      d_sae=latents,
      apply_b_dec_to_input=False,
      metadata=sae.SAEMetadata(hook_name=hook),
    )
  )
  for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
    value = torch.from_numpy(problem[name.lower()])
    getattr(dictionary, name).copy_(value)
  tokens = torch.from_numpy(problem["tokens"]).long()
  special = problem["special"].tolist()
  cases = itertools.product(
    (("all", None), ("text", special)), (2, len(tokens))
  )
  answer = {}
  for (case, ignored), batch in cases:
    found = _evaluate(model, dictionary, tokens, ignored, batch)
    which = case if batch == len(tokens) else f"{case} in batches"
    answer |= {f"{name} of {which}": value for name, value in found.items()}
  np.savez(folder / "answer.npz", **answer)


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))

"""Gemma 3 270M: our forward pass against transformers' in torch, float32.

Tokens a second up to layer 9 (where an SAE of res.8 reads) and through the
whole model with the loss, and the peak memory of each. Torch runs eager, its
default attention, as a user would run it.
"""

from __future__ import annotations

import datetime
import statistics
import sys

import numpy as np

from experiments.benchmarks import workers

_SHAPES = ((8, 256), (2, 1024))
_LAYERS = 9
_ROUNDS = 5
_JOBS = (("layers", f"to layer {_LAYERS}"), ("loss", "with the loss"))


def _tokens(shape) -> np.ndarray:
  tokens = np.random.default_rng(0).integers(300, 200_000, shape)
  tokens[:, 0] = 2
  return tokens.astype(np.int32)


def _serve_jax() -> None:
  import functools

  import jax

  from gemmascope_jax import gemma

  lm = gemma.load("demo")

  @functools.partial(jax.jit, static_argnums=0)
  def run(job, params, tokens):
    if job == "layers":
      out = gemma.forward(
        lm.config, params, tokens, num_layers=_LAYERS, logits=False
      )
      return out.residual.mean()
    return gemma.next_token_losses(lm.config, params, tokens).mean()

  def measure(request):
    return float(run(request["job"], lm.params, _tokens(request["shape"])))

  workers.serve(measure)


def _serve_torch() -> None:
  import torch
  import transformers

  from gemmascope_jax.gemma.weights import demo

  path = demo.path()
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  ).eval()
  layers = model.model.layers

  @torch.inference_mode()
  def measure(request):
    tokens = torch.from_numpy(_tokens(request["shape"]).astype(np.int64))
    if request["job"] == "loss":
      model.model.layers = layers
      return float(model(tokens, labels=tokens, use_cache=False).loss)
    model.model.layers = layers[:_LAYERS]
    stream = []
    hook = model.model.layers[-1].register_forward_hook(
      lambda module, args, out: stream.append(
        out[0] if isinstance(out, tuple) else out
      )
    )
    model.model(tokens, use_cache=False)
    hook.remove()
    return float(stream[0].mean())

  workers.serve(measure)


def main() -> None:
  """Measures, and prints a table for docs/benchmarks.md."""
  rivals = {name: workers.Worker(__name__, name) for name in ("jax", "torch")}
  print(f"{workers.machine()}, {datetime.date.today()}, {_ROUNDS} rounds\n")
  print(
    "| tokens | work | ours, tokens/s | torch | ratio | ours, GiB | torch | ratio |"
  )
  print("|---|---|---|---|---|---|---|---|", flush=True)
  for shape in _SHAPES:
    for job, label in _JOBS:
      print(_compare(rivals, shape, job, label), flush=True)
  for worker in rivals.values():
    worker.close()


def _compare(rivals, shape, job, label) -> str:
  request = {"job": job, "shape": shape}
  found = {name: [] for name in rivals}
  for worker in rivals.values():
    worker.ask(request)  # compiles, warms caches
  for _ in range(_ROUNDS):
    for name, worker in rivals.items():
      found[name].append(worker.ask(request))
  ours, theirs = found["jax"], found["torch"]
  if not np.isclose(ours[0]["value"], theirs[0]["value"], rtol=2e-3):
    raise RuntimeError(
      f"{label}: ours gives {ours[0]['value']}, torch {theirs[0]['value']}: not"
      " the same computation"
    )
  rate = lambda answers: (
    shape[0] * shape[1] / statistics.median(a["seconds"] for a in answers)
  )
  peak = lambda answers: max(a["peak_gib"] for a in answers)
  # The ratio is of neighbours in time, so that noise cancels.
  speed = statistics.median(
    t["seconds"] / o["seconds"] for o, t in zip(ours, theirs, strict=True)
  )
  return (
    f"| {shape[0]} x {shape[1]} | {label} | {rate(ours):.0f} |"
    f" {rate(theirs):.0f} | {speed:.2f} | {peak(ours):.2f} |"
    f" {peak(theirs):.2f} | {peak(ours) / peak(theirs):.2f} |"
  )


if __name__ == "__main__":
  {"jax": _serve_jax, "torch": _serve_torch}[sys.argv[1]]()

"""One JumpReLU training step, optimizer included, against other libraries'.

SAELens and dictionary_learning take part where they are installed: in this
interpreter, or in the one that the environment variable PEERS_PYTHON names,
because their requirements may not go with ours. Every rival has the same
weights, thresholds at an L0 of about 50, and batch; float32.

"Floor" is what no step can do without: the encoder's product over all latents,
and the optimizer's reading and writing of weights, gradients and moments at the
machine's copying speed; both measured in the same rounds.
"""

from __future__ import annotations

import datetime
import os
import statistics
import subprocess
import sys

import numpy as np

from experiments.benchmarks import workers

# (width of the site, latents, batch rows)
_SHAPES = {
  "cpu": ((2304, 16_384, 4096), (640, 16_384, 2048)),
  "gpu": ((3584, 131_072, 4096), (2304, 16_384, 4096)),
}
_L0 = 50
_ROUNDS = 3
_PEERS = {"SAELens": "sae_lens", "dictionary_learning": "dictionary_learning"}


def _problem(shape):
  """Rows of unit length, a unit-norm dictionary, thresholds; from a seed."""
  width, latents, rows = shape
  rng = np.random.default_rng(0)
  unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
  x = unit(rng.standard_normal((rows, width), np.float32))
  w_dec = unit(rng.standard_normal((latents, width), np.float32))
  pre = x[:1024] @ w_dec.T
  threshold = np.quantile(pre, 1 - _L0 / latents)
  return x, w_dec, np.full(latents, threshold, np.float32)


def _serve_ours(step: str, precision: str) -> None:
  import functools

  import jax
  import jax.numpy as jnp

  from gemmascope_jax.sae import code, optimizer, sweep, train_step
  from gemmascope_jax.sae.config import Recipe

  def prepare(shape):
    x, w_dec, threshold = _problem(shape)
    width, latents, rows = shape
    recipe = Recipe(
      width=latents,
      batch_size=rows,
      steps=10**6,
      step=step,
      target_l0=_L0,
      matmul_precision=precision,
    )
    params = {
      "w_enc": jnp.array(w_dec),
      "w_dec": jnp.array(w_dec),
      "b_enc": jnp.zeros(latents),
      "b_dec": jnp.zeros(width),
      "threshold": jnp.array(threshold),
    }
    state = train_step.TrainState(
      params=params,
      opt_state=optimizer.adam(recipe).init(params),
      step=jnp.zeros([], jnp.int32),
      last_fired=jnp.zeros(latents, jnp.int32),
      fired=jnp.zeros(latents, jnp.int32),
      dense_steps=jnp.zeros([], jnp.int32),
    )
    return {
      "x": jnp.asarray(x),
      "state": state,
      "step": sweep.step_fn(recipe),
      "knobs": train_step.Knobs.of(recipe),
    }

  product = jax.jit(functools.partial(code.product, precision=precision))
  copy = jax.jit(lambda a: a + 1)
  problems = {}

  def measure(request):
    if request["job"] == "platform":
      return jax.default_backend()
    shape = tuple(request["shape"])
    if request["job"] == "prepare":
      problems.clear()
      problems.update(prepare(shape))
      return None
    state, x = problems["state"], problems["x"]
    if request["job"] == "step":
      state, values = problems["step"](state, x, x, problems["knobs"])
      jax.block_until_ready(state)
      problems["state"] = state
      return [float(values["l0"]), int(state.dense_steps)]
    params = state.params
    if request["job"] == "product":
      product(x, params["b_dec"], params["w_enc"]).block_until_ready()
    if request["job"] == "copy":  # one array read, one written
      copy(params["w_enc"]).block_until_ready()
    return None

  workers.serve(measure)


def _serve_sae_lens() -> None:
  import torch
  from sae_lens.saes.jumprelu_sae import (
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
  )
  from sae_lens.saes.sae import TrainStepInput

  problem = {}

  def measure(request):
    if request["job"] == "prepare":
      x, w_dec, threshold = _problem(request["shape"])
      sae = JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
          d_in=x.shape[1], d_sae=len(w_dec), jumprelu_bandwidth=1e-3
        )
      )
      with torch.no_grad():
        sae.W_enc.copy_(torch.from_numpy(w_dec.T))
        sae.W_dec.copy_(torch.from_numpy(w_dec))
        sae.threshold.copy_(torch.from_numpy(threshold))
      adam = torch.optim.Adam(sae.parameters(), lr=7e-6, betas=(0.0, 0.999))
      problem.update(x=torch.from_numpy(x), sae=sae, adam=adam)
      return None
    # As SAETrainer's `_train_step` does.
    sae, adam = problem["sae"], problem["adam"]
    out = sae.training_forward_pass(
      TrainStepInput(problem["x"], {"l0": 0.0}, None, 1, False)
    )
    with torch.no_grad():
      fired = out.feature_acts.bool().float()
      l0 = fired.sum(-1).mean()
      fired.sum(-2).bool()
    out.loss.backward()
    torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
    adam.step()
    adam.zero_grad()
    return [float(l0), 0]

  workers.serve(measure)


def _serve_dictionary_learning() -> None:
  import torch
  from dictionary_learning.trainers.jumprelu import JumpReluTrainer

  problem = {}

  def measure(request):
    if request["job"] == "prepare":
      x, w_dec, threshold = _problem(request["shape"])
      trainer = JumpReluTrainer(
        steps=10**6,
        activation_dim=x.shape[1],
        dict_size=len(w_dec),
        layer=0,
        lm_name="none",
        device="cpu",
      )
      with torch.no_grad():
        trainer.ae.W_enc.copy_(torch.from_numpy(w_dec.T))
        trainer.ae.W_dec.copy_(torch.from_numpy(w_dec))
        trainer.ae.threshold.copy_(torch.from_numpy(threshold))
      problem.update(x=torch.from_numpy(x), trainer=trainer)
      return None
    problem["trainer"].update(0, problem["x"])
    return [float("nan"), 0]

  workers.serve(measure)


def peers_python() -> str:
  """The interpreter that other libraries are looked for in."""
  return os.environ.get("PEERS_PYTHON", sys.executable)


def installed(module: str) -> bool:
  """Whether another library can be imported there; says so if not."""
  asked = [peers_python(), "-c", f"import {module}"]
  if subprocess.run(asked, capture_output=True).returncode == 0:
    return True
  print(f"{module} is not installed for {peers_python()}: left out")
  return False


def main() -> None:
  """Measures, and prints tables for docs/benchmarks.md."""
  rivals = {
    "ours": workers.Worker(__name__, "auto:highest"),
    "ours, dense": workers.Worker(__name__, "dense:highest"),
  }
  platform = rivals["ours"].ask({"job": "platform"})["value"]
  if platform == "cpu":
    for name, module in _PEERS.items():
      if installed(module):
        rivals[name] = workers.Worker(__name__, module, peers_python())
  else:
    for precision in ("high", "default", "bfloat16"):
      rivals[f"ours, dense, {precision}"] = workers.Worker(
        __name__, f"dense:{precision}"
      )
  print(
    f"{workers.machine()}, {platform}, {datetime.date.today()}, {_ROUNDS}"
    " rounds\n"
  )
  for shape in _SHAPES["cpu" if platform == "cpu" else "gpu"]:
    _compare(rivals, shape)
  for worker in rivals.values():
    worker.close()


def _compare(rivals, shape) -> None:
  """Prints the table of one shape."""
  width, latents, rows = shape
  found = {name: [] for name in rivals}
  parts = {"product": [], "copy": []}
  for worker in rivals.values():
    worker.ask({"job": "prepare", "shape": shape})
    worker.ask({"job": "step", "shape": shape})  # compiles
  for job in parts:
    rivals["ours"].ask({"job": job, "shape": shape})
  for _ in range(_ROUNDS):
    for name, worker in rivals.items():
      found[name].append(worker.ask({"job": "step", "shape": shape}))
    for job, seconds in parts.items():
      answer = rivals["ours"].ask({"job": job, "shape": shape})
      seconds.append(answer["seconds"])
  product, copy = (statistics.median(parts[job]) for job in parts)
  # Weights and second moments are read and written, gradients read; each copy
  # is one read and one write of half of the weights.
  floor = product + 2 * 2.5 * copy
  flops = 2 * rows * width * latents
  print(
    f"Width {width} to {latents} latents, {rows} rows, L0"
    f" {found['ours'][0]['value'][0]:.0f}. The encoder's product alone takes"
    f" {product:.3f} s ({flops / product / 1e9:.0f} GFLOP/s), the floor is"
    f" {floor:.3f} s.\n"
  )
  print(
    "| step of | s | times the floor | ours is faster by | GFLOP/s if dense |"
  )
  print("|---|---|---|---|---|")
  for name, answers in found.items():
    seconds = statistics.median(a["seconds"] for a in answers)
    # Of neighbours in time, so that noise cancels.
    ratio = statistics.median(
      a["seconds"] / o["seconds"]
      for a, o in zip(answers, found["ours"], strict=True)
    )
    rate = "" if name == "ours" else f"{5 * flops / seconds / 1e9:.0f}"
    print(
      f"| {name} | {seconds:.3f} | {seconds / floor:.2f} | {ratio:.2f} |"
      f" {rate} |"
    )
  fell_back = found["ours"][-1]["value"][1]
  print(f"\nSteps of ours that had to be dense: {fell_back}\n", flush=True)


if __name__ == "__main__":
  if ":" in sys.argv[1]:
    _serve_ours(*sys.argv[1].split(":"))
  else:
    {
      "sae_lens": _serve_sae_lens,
      "dictionary_learning": _serve_dictionary_learning,
    }[sys.argv[1]]()

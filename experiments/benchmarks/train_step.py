"""One JumpReLU training step, optimizer included, against other libraries'.

SAELens and dictionary_learning take part where they are installed: in this
interpreter, or in the one that the environment variable PEERS_PYTHON names,
because their requirements may not go with ours. Every rival has the same
weights, thresholds at an L0 of about 50, and batch; float32 unless it says
otherwise. On the CPU rounds alternate between rivals; on a GPU, whose memory
one large step fills, each rival has it alone.

"Floor" is what no step can do without: the encoder's product over all latents,
and the optimizer's reading and writing of weights, gradients and moments at the
machine's copying speed; both measured in the same rounds.
"""

from __future__ import annotations

import datetime
import itertools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import workers

# (width of the site, latents, batch rows)
_SHAPES = {
  "cpu": ((2304, 16_384, 4096), (640, 16_384, 2048)),
  "gpu": ((2304, 16_384, 4096), (3584, 131_072, 4096)),
}
_L0 = 50
_ROUNDS = {"cpu": 3, "gpu": 10}
_PEERS = {"SAELens": "sae_lens", "dictionary_learning": "dictionary_learning"}


def _make_problem(shape, folder: pathlib.Path) -> dict[str, str]:
  """Rows of unit length, a unit-norm dictionary, thresholds; from a seed.

  Returns:
    Their files, which every rival reads.
  """
  width, latents, rows = shape
  rng = np.random.default_rng(0)
  unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
  x = unit(rng.standard_normal((rows, width), np.float32))
  w_dec = unit(rng.standard_normal((latents, width), np.float32))
  pre = x[:256] @ w_dec.T
  threshold = np.quantile(pre, 1 - _L0 / latents)
  arrays = {
    "x": x,
    "w_dec": w_dec,
    "threshold": np.full(latents, threshold, np.float32),
  }
  files = {name: str(folder / f"{name}.npy") for name in arrays}
  for name, array in arrays.items():
    np.save(files[name], array)
  return files


def _problem(request) -> tuple[np.ndarray, ...]:
  """(x, w_dec, threshold) of the files in a request."""
  return tuple(np.load(request[key]) for key in ("x", "w_dec", "threshold"))


def _serve_ours() -> None:
  import functools

  import jax
  import jax.numpy as jnp

  from gemmascope_jax.sae import code, optimizer, sweep, train_step
  from gemmascope_jax.sae.config import Recipe

  def prepare(request):
    x, w_dec, threshold = _problem(request)
    rows, (latents, width) = len(x), w_dec.shape
    recipe = Recipe(
      width=latents,
      batch_size=rows,
      steps=10**6,
      step=request["step"],
      target_l0=_L0,
      matmul_precision=request["precision"],
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
      "product": jax.jit(
        functools.partial(code.product, precision=request["precision"])
      ),
    }

  copy = jax.jit(lambda a: a + 1)
  problems = {}

  def measure(request):
    if request["job"] == "platform":
      return jax.default_backend()
    if request["job"] == "prepare":
      problems.clear()
      problems.update(prepare(request))
      return None
    state, x = problems["state"], problems["x"]
    if request["job"] == "step":
      state, values = problems["step"](state, x, x, problems["knobs"])
      jax.block_until_ready(state)
      problems["state"] = state
      return [float(values["l0"]), int(state.dense_steps), workers.device_gib()]
    params = state.params
    if request["job"] == "product":
      product = problems["product"]
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
  device = workers.torch_device()

  def measure(request):
    if request["job"] == "prepare":
      x, w_dec, threshold = _problem(request)
      sae = JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
          d_in=x.shape[1],
          d_sae=len(w_dec),
          jumprelu_bandwidth=1e-3,
          device=device,
        )
      )
      with torch.no_grad():
        sae.W_enc.copy_(torch.from_numpy(w_dec.T))
        sae.W_dec.copy_(torch.from_numpy(w_dec))
        sae.threshold.copy_(torch.from_numpy(threshold))
      adam = torch.optim.Adam(sae.parameters(), lr=7e-6, betas=(0.0, 0.999))
      x = torch.from_numpy(x).to(device)
      problem.update(x=x, sae=sae, adam=adam, bfloat16=request["bfloat16"])
      return None
    # As SAETrainer's `_train_step` does.
    sae, adam = problem["sae"], problem["adam"]
    with torch.autocast(device, torch.bfloat16, enabled=problem["bfloat16"]):
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
    return [float(l0), 0, workers.torch_device_gib()]

  workers.serve(measure)


def _serve_dictionary_learning() -> None:
  import torch
  from dictionary_learning.trainers.jumprelu import JumpReluTrainer

  problem = {}
  device = workers.torch_device()

  def measure(request):
    if request["job"] == "prepare":
      x, w_dec, threshold = _problem(request)
      trainer = JumpReluTrainer(
        steps=10**6,
        activation_dim=x.shape[1],
        dict_size=len(w_dec),
        layer=0,
        lm_name="none",
        device=device,
      )
      with torch.no_grad():
        trainer.ae.W_enc.copy_(torch.from_numpy(w_dec.T))
        trainer.ae.W_dec.copy_(torch.from_numpy(w_dec))
        trainer.ae.threshold.copy_(torch.from_numpy(threshold))
      problem.update(x=torch.from_numpy(x).to(device), trainer=trainer)
      return None
    problem["trainer"].update(0, problem["x"])
    return [float("nan"), 0, workers.torch_device_gib()]

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


class _Rival(NamedTuple):
  """A module's way to step, and the interpreter that it runs in."""

  module: str
  settings: dict[str, Any]
  python: str = sys.executable

  def start(self) -> workers.Worker:
    return workers.Worker(__name__, self.module, python=self.python)


def _rivals(on_cpu: bool) -> dict[str, _Rival]:
  ours = lambda step, precision: _Rival(
    "ours", {"step": step, "precision": precision}
  )
  rivals = {"ours": ours("auto", "highest")}
  if on_cpu:
    rivals["ours, dense"] = ours("dense", "highest")
  else:
    for precision in ("default", "bfloat16"):
      rivals[f"ours, {precision}"] = ours("dense", precision)
  for name, module in _PEERS.items():
    if installed(module):
      rivals[name] = _Rival(module, {"bfloat16": False}, peers_python())
  if "SAELens" in rivals and not on_cpu:
    rivals["SAELens, bfloat16"] = rivals["SAELens"]._replace(
      settings={"bfloat16": True}
    )
  return rivals


def main() -> None:
  """Measures, and prints tables for docs/benchmarks.md."""
  probe = workers.Worker(__name__, "ours")
  platform = probe.ask({"job": "platform"})["value"]
  probe.close()
  kind = "cpu" if platform == "cpu" else "gpu"
  rivals, rounds = _rivals(kind == "cpu"), _ROUNDS[kind]
  print(
    f"{workers.machine()}, {platform}, {datetime.date.today()}, {rounds}"
    " rounds\n",
    flush=True,
  )
  for shape in _SHAPES[kind]:
    with tempfile.TemporaryDirectory() as folder:
      files = _make_problem(shape, pathlib.Path(folder))
      measure = _in_turn if kind == "cpu" else _one_by_one
      _print_table(shape, *measure(rivals, files, rounds))


def _in_turn(rivals, files, rounds: int):
  """Seconds of first steps; answers of each rival, and of the floor's parts.

  Rounds alternate between rivals.
  """
  started = {name: rival.start() for name, rival in rivals.items()}
  first, found = {}, {name: [] for name in rivals}
  parts = {"product": [], "copy": []}
  for name, worker in started.items():
    worker.ask({"job": "prepare", **files, **rivals[name].settings})
    first[name] = worker.ask({"job": "step"})["seconds"]  # compiles
  for job in parts:
    started["ours"].ask({"job": job})
  for _ in range(rounds):
    for name, worker in started.items():
      found[name].append(worker.ask({"job": "step"}))
    for job, answers in parts.items():
      answers.append(started["ours"].ask({"job": job}))
  for worker in started.values():
    worker.close()
  return first, found, parts


def _one_by_one(rivals, files, rounds: int):
  """The same, each rival alone on the device; says how far it is."""
  first, found, parts = {}, {}, {}
  of_module = itertools.groupby(rivals.items(), lambda item: item[1].module)
  for _, group in of_module:
    group = dict(group)
    worker = next(iter(group.values())).start()
    for name, rival in group.items():
      worker.ask({"job": "prepare", **files, **rival.settings})
      first[name] = worker.ask({"job": "step"})["seconds"]
      found[name] = [worker.ask({"job": "step"}) for _ in range(rounds)]
      last = found[name][-1]["seconds"]
      print(
        f"{name}: first step {first[name]:.1f} s, then {last:.4f} s",
        file=sys.stderr,
        flush=True,
      )
      for job in ("product", "copy") if name == "ours" else ():
        worker.ask({"job": job})
        parts[job] = [worker.ask({"job": job}) for _ in range(rounds)]
    worker.close()
  return first, found, parts


def _print_table(shape, first, found, parts) -> None:
  """Prints the table of one shape."""
  width, latents, rows = shape
  median = lambda answers: statistics.median(a["seconds"] for a in answers)
  product, copy = (median(parts[job]) for job in ("product", "copy"))
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
    " GiB of the device | first step, s |"
  )
  print("|---|---|---|---|---|---|---|")
  for name, answers in found.items():
    # Of neighbours in time, so that noise cancels.
    ratio = statistics.median(
      a["seconds"] / o["seconds"]
      for a, o in zip(answers, found["ours"], strict=True)
    )
    rate = f"{5 * flops / median(answers) / 1e9:.0f}"
    print(
      f"| {name} | {median(answers):.4f} | {median(answers) / floor:.2f} |"
      f" {ratio:.2f} | {rate} | {answers[-1]['value'][2]:.1f} | {first[name]:.1f} |"
    )
  fell_back = found["ours"][-1]["value"][1]
  print(f"\nSteps of ours that had to be dense: {fell_back}\n", flush=True)


if __name__ == "__main__":
  {
    "ours": _serve_ours,
    "sae_lens": _serve_sae_lens,
    "dictionary_learning": _serve_dictionary_learning,
  }[sys.argv[1]]()

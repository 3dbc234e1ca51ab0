"""FVU at L0: our families, and SAELens's, trained on the same rows.

Every SAE sees the same batches of real activations in the same order, and is
measured on the same rows that none has seen, with the same code, after folding.
Learning rates: each library and family tries the same ones at a middling
sparsity, and is trained at other sparsities with its best. A rate also moves
L0, so best is the lowest FVU times root of L0, about as which FVU falls here.
All start with b_dec at the rows' mean, have Adam's usual betas, warm up and
decay alike. SAELens gets rows scaled to a mean square norm of D, which its
defaults are made for. Without SAELens (see `train_step`) ours run alone.

Rows come from the quickstart's store, `--config.workdir` of which may be named
by the environment variable BENCHMARK_STORE (the folder of the store itself).
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import pathlib
import tempfile

import numpy as np

from experiments.benchmarks import train_step, workers

_WIDTH, _ROWS, _STEPS, _HELD_OUT = 4096, 1024, 400, 16  # last: batches
_WARMUP, _SPARSITY_WARMUP, _DECAY = 40, 100, 0.4
_RATES = (5e-4, 1e-3, 2e-3)
# Each kind's middling sparsity first: lambda, in units where the mean square
# norm is 1, or k.
_OURS = {
  "jumprelu": (7e-5, 1.5e-5, 3e-5, 1.5e-4, 3e-4, 6e-4),
  "gated": (1e-3, 3e-4, 3e-3),
  "topk": (50, 20, 100),
  "batch_topk": (50, 20, 100),
  "relu": (1e-3, 3e-4, 3e-3),
}
_SAE_LENS = {
  "SAELens jumprelu": (7e-5, 3e-5, 2e-4),
  "SAELens batch_topk": (50, 20, 100),
}
_FIGURE = pathlib.Path("docs/images/families.png")


@dataclasses.dataclass(frozen=True)
class Point:
  """One trained SAE, measured on held-out rows."""

  name: str
  rate: float
  sparsity: float
  l0: float
  fvu: float
  dead: float


def measured(params: dict[str, np.ndarray], x: np.ndarray, mean) -> tuple:
  """(L0, FVU, share of latents that never fired) of a JumpReLU SAE.

  Args:
    params: W_enc [D, M], b_enc, W_dec [M, D], b_dec, threshold; raw space.
      "k" instead of a threshold: the k largest of a row.
    x: float32 [N, D].
    mean: float64 [D], of the rows trained on.
  """
  squared = count = 0.0
  fired = np.zeros(params["b_enc"].shape, bool)
  for rows in np.array_split(x, len(x) // _ROWS):
    pre = rows @ params["W_enc"] + params["b_enc"]
    if "k" in params:
      kept = np.argpartition(pre, -params["k"], axis=1)[:, -params["k"] :]
      active = np.zeros(pre.shape, bool)
      np.put_along_axis(active, kept, True, axis=1)
      active &= pre > 0
    else:
      active = (pre > params["threshold"]) & (pre > 0)
    out = np.where(active, pre, 0) @ params["W_dec"] + params["b_dec"]
    squared += np.square(out - rows, dtype=np.float64).sum()
    count += active.sum()
    fired |= active.any(axis=0)
  variance = np.square(x - mean, dtype=np.float64).sum()
  return count / len(x), squared / variance, 1 - fired.mean()


class _Stream:
  """The rows of a file as batches in order, for `training.train`."""

  site, model, fingerprint, waits_for = "res.5", "demo", "benchmark", "disk"
  provenance = {"weights_hash": "benchmark"}

  def __init__(self, path, policy):
    self._x = np.load(path, mmap_mode="r")
    self.batch_size, self.policy = _ROWS, policy
    self.rows, self.width = self._x.shape
    trained = self._x[: _STEPS * _ROWS]
    self.mean = trained.mean(axis=0, dtype=np.float64)
    self.mean_square_norm = float(
      np.square(trained, dtype=np.float64).sum(axis=1).mean()
    )

  def batch(self, step, part=slice(None)):
    return np.array(self._x[step * _ROWS : (step + 1) * _ROWS][part])

  def iterate(self, start=0, stop=None, *, part=slice(None)):
    for step in range(start, stop):
      yield step, self.batch(step, part)

  def held_out(self):
    return np.array(self._x[_STEPS * _ROWS :])


def _recipe(family: str, rate: float, sparsity: float):
  """Of one of our members."""
  from gemmascope_jax.sae.config import Recipe

  recipe = Recipe(
    family=family,
    width=_WIDTH,
    batch_size=_ROWS,
    steps=_STEPS,
    learning_rate=rate,
    adam_b1=0.9,
    learning_rate_warmup_steps=_WARMUP,
    learning_rate_decay_share=_DECAY,
    sparsity_warmup_steps=_SPARSITY_WARMUP,
    bias_learning_rate_scale=0.03,
    bias_init="mean",
    bandwidth=1e-2,
  )
  own = {"sparsity_coefficient": sparsity}
  if family == "jumprelu":
    own["threshold_init_l0"] = 80.0
  if family in ("topk", "batch_topk"):
    own = {"k": sparsity, "aux_coefficient": 1 / 32, "dead_after_rows": 50_000}
  return dataclasses.replace(recipe, **own)


def _ours(path: pathlib.Path, folder: pathlib.Path):
  """The function that trains (family, rate, sparsity) triples in one sweep."""
  from gemmascope_jax import sae, training
  from gemmascope_jax.data.policy import TokenPolicy

  stream = _Stream(path, TokenPolicy(excluded_ids=(0, 1, 2), pad_id=0))
  held_out = stream.held_out()

  def train(wanted):
    folders = training.train(
      stream,
      [_recipe(*one) for one in wanted],
      folder,
      schedule=training.Schedule(log_every=50, checkpoint_every=_STEPS),
    )
    for one, member in zip(wanted, folders, strict=True):
      found = sae.load(member)
      params = {
        "W_enc": found.params.w_enc,
        "b_enc": found.params.b_enc,
        "W_dec": found.params.w_dec,
        "b_dec": found.params.b_dec,
        "threshold": found.params.threshold,
      }
      if found.config.k:
        params["k"] = found.config.k
      yield Point(*one, *measured(params, held_out, stream.mean))

  return train


def _serve_sae_lens() -> None:
  import torch
  from sae_lens.config import LoggingConfig, SAETrainerConfig
  from sae_lens.saes.batchtopk_sae import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
  )
  from sae_lens.saes.jumprelu_sae import (
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
  )
  from sae_lens.training.sae_trainer import SAETrainer

  def measure(request):
    stream = _Stream(request["path"], None)
    width = stream.width
    scale = np.float32((stream.mean_square_norm / width) ** 0.5)
    if request["kind"] == "jumprelu":
      sae = JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
          d_in=width,
          d_sae=_WIDTH,
          l0_coefficient=request["sparsity"] * width,
          l0_warm_up_steps=_SPARSITY_WARMUP,
        )
      )
    else:
      sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
          d_in=width, d_sae=_WIDTH, k=request["sparsity"]
        )
      )
    with torch.no_grad():
      sae.b_dec.copy_(torch.from_numpy(stream.mean / scale))
    batches = (
      torch.from_numpy(batch / scale) for _, batch in stream.iterate(0, _STEPS)
    )
    SAETrainer(
      SAETrainerConfig(
        total_training_samples=_STEPS * _ROWS,
        train_batch_size_samples=_ROWS,
        lr=request["rate"],
        lr_end=request["rate"] / 10,
        lr_warm_up_steps=_WARMUP,
        lr_decay_steps=int(_DECAY * _STEPS),
        dead_feature_window=50,
        logger=LoggingConfig(log_to_wandb=False),
      ),
      sae,
      batches,
    ).fit()
    state = sae.state_dict()
    sae.process_state_dict_for_saving_inference(state)
    arrays = {k: v.detach().float().numpy() for k, v in state.items()}
    if sae.cfg.apply_b_dec_to_input:
      shift = arrays["b_dec"] @ arrays["W_enc"]
      arrays["b_enc"] = arrays["b_enc"] - shift
    for name in ("b_enc", "b_dec", "threshold"):
      arrays[name] = arrays[name] * scale
    numbers = measured(arrays, stream.held_out(), stream.mean)
    return [float(number) for number in numbers]

  workers.serve(measure)


def _theirs(path: pathlib.Path, worker: workers.Worker):
  """The function that lets SAELens train such triples, one after another."""

  def train(wanted):
    for name, rate, sparsity in wanted:
      request = {"kind": name.split()[1], "sparsity": sparsity, "rate": rate}
      answer = worker.ask(request | {"path": str(path)})
      yield Point(name, rate, sparsity, *answer["value"])

  return train


def _tuned(train, kinds: dict[str, tuple]) -> dict[str, list[Point]]:
  """Each kind's points at its best rate, sparsest first; prints all points.

  Args:
    train: trains (kind, rate, sparsity) triples and yields their points.
    kinds: sparsities of each, the middling one first.
  """
  first = [
    (kind, rate, values[0]) for kind, values in kinds.items() for rate in _RATES
  ]
  best = {}
  for point in train(first):
    print(_row(point), flush=True)
    score = lambda p: p.fvu * p.l0**0.5
    if point.name not in best or score(point) < score(best[point.name]):
      best[point.name] = point
  rest = [
    (kind, best[kind].rate, value)
    for kind, values in kinds.items()
    for value in values[1:]
  ]
  found = {kind: [point] for kind, point in best.items()}
  for point in train(rest):
    print(_row(point), flush=True)
    found[point.name].append(point)
  return {
    kind: sorted(points, key=lambda point: point.l0)
    for kind, points in found.items()
  }


def _write_rows(path: pathlib.Path) -> None:
  """The first rows of the shuffled stream, as one file."""
  from configs import quickstart
  from gemmascope_jax import experiment
  from gemmascope_jax.experiment import activations

  config = quickstart.get_config()
  config.workdir = "runs/benchmark"
  if os.environ.get("BENCHMARK_STORE"):
    config.data.source = os.environ["BENCHMARK_STORE"]
  else:
    experiment.harvest(config)
  stream = activations.open_stream(config)
  steps = _STEPS + _HELD_OUT
  out = np.lib.format.open_memmap(
    path, "w+", np.float32, (steps * _ROWS, stream.width)
  )
  for step, batch in stream.iterate(0, steps):
    out[step * _ROWS : (step + 1) * _ROWS] = batch
  out.flush()


def main() -> None:
  """Trains, measures, prints a table, and draws the figure."""
  print(
    f"{workers.machine()}, {datetime.date.today()}, {_STEPS} steps of {_ROWS}"
    f" rows, {_WIDTH} latents, rates {_RATES}\n"
  )
  print("| SAE | rate | lambda or k | L0 | FVU | never fired |")
  print("|---|---|---|---|---|---|", flush=True)
  with tempfile.TemporaryDirectory() as name:
    path = pathlib.Path(name) / "rows.npy"
    _write_rows(path)
    best = _tuned(_ours(path, pathlib.Path(name) / "run"), _OURS)
    if train_step.installed("sae_lens"):
      worker = workers.Worker(__name__, "sae_lens", train_step.peers_python())
      best |= _tuned(_theirs(path, worker), _SAE_LENS)
      worker.close()
  _draw(best)
  print(f"\n{_FIGURE}")


def _row(point: Point) -> str:
  return (
    f"| {point.name} | {point.rate:g} | {point.sparsity:g} | {point.l0:.1f} |"
    f" {point.fvu:.4f} | {point.dead:.0%} |"
  )


def _draw(best: dict[str, list[Point]]) -> None:
  import matplotlib.pyplot as plt

  figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
  for name, points in best.items():
    axis.plot(
      [point.l0 for point in points],
      [point.fvu for point in points],
      "s--" if name.startswith("SAELens") else "o-",
      markersize=4,
      linewidth=1.2,
      label=f"{name}, rate {points[0].rate:g}",
    )
  axis.set(xscale="log", xlabel="L0", ylabel="FVU on held-out rows")
  axis.legend(frameon=False, fontsize=8)
  axis.spines[["top", "right"]].set_visible(False)
  axis.set_title(
    f"{_WIDTH} latents, {_STEPS * _ROWS:,} tokens, each at its best rate",
    fontsize=10,
  )
  _FIGURE.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(_FIGURE, dpi=150)


if __name__ == "__main__":
  _serve_sae_lens()

"""FVU at L0: our families, and SAELens's, trained on the same rows.

Every SAE sees the same batches of real activations in the same order, and is
measured on the same rows that none has seen, with the same code, after folding.
Learning rates: each library and family tries the same ones at every sparsity. A
rate also moves L0, so best is the lowest FVU times root of L0, about as which
FVU falls here.
All start with b_dec at the rows' mean (ours stay there), have the same betas of
Adam, warm up and decay alike. SAELens gets rows scaled to a mean square norm of D, which its
defaults are made for. Without SAELens (see `train_step`) ours run alone.

Rows: see `real_rows`.
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import tempfile

import numpy as np

from experiments.benchmarks import real_rows, train_step, workers

_WIDTH = 4096
_WARMUP, _SPARSITY_WARMUP, _DECAY = 100, 150, 0.4
_BETAS = (0.8, 0.99)
_RATES = (4e-3, 8e-3, 1.6e-2)
# Lambda, in units where the mean square norm is 1, or k.
_OURS = {
  "jumprelu": (7e-5, 1.5e-5, 3e-5, 1.5e-4, 3e-4, 6e-4),
  "gated": (3e-2, 2e-2, 4.5e-2),
  "topk": (50, 20, 100),
  "batch_topk": (50, 20, 100),
  "relu": (1.8e-2, 1.2e-2, 2.5e-2),
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


def recipe(family: str, rate: float, sparsity: float):
  """The `Recipe` of one of our members."""
  from gemmascope_jax.sae.config import Recipe

  shared = Recipe(
    family=family,
    width=_WIDTH,
    batch_size=real_rows.BATCH,
    steps=real_rows.STEPS,
    learning_rate=rate,
    adam_b1=_BETAS[0],
    adam_b2=_BETAS[1],
    learning_rate_warmup_steps=_WARMUP,
    learning_rate_decay_share=_DECAY,
    sparsity_warmup_steps=_SPARSITY_WARMUP,
    bias_learning_rate_scale=0.015,
    bias_init="mean",
    frozen=("b_dec",),
    bandwidth=1e-2,
  )
  own = {"sparsity_coefficient": sparsity}
  if family == "jumprelu":
    own["threshold_init_l0"] = 80.0
  if family in ("topk", "batch_topk"):
    own = {"k": sparsity, "aux_coefficient": 1 / 32, "dead_after_rows": 50_000}
  return dataclasses.replace(shared, **own)


def _ours(path: pathlib.Path, folder: pathlib.Path):
  """The function that trains (family, rate, sparsity) triples in one sweep."""
  from gemmascope_jax import training
  from gemmascope_jax.data.policy import TokenPolicy

  stream = real_rows.Rows(path, TokenPolicy(excluded_ids=(0, 1, 2), pad_id=0))

  def train(wanted):
    folders = training.train(
      stream,
      [recipe(*one) for one in wanted],
      folder,
      schedule=training.Schedule(
        log_every=50, checkpoint_every=real_rows.STEPS
      ),
    )
    for one, member in zip(wanted, folders, strict=True):
      yield Point(*one, *real_rows.measured_member(member, stream))

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
    stream = real_rows.Rows(request["path"], None)
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
      torch.from_numpy(batch / scale)
      for _, batch in stream.iterate(0, real_rows.STEPS)
    )
    SAETrainer(
      SAETrainerConfig(
        total_training_samples=real_rows.STEPS * real_rows.BATCH,
        train_batch_size_samples=real_rows.BATCH,
        lr=request["rate"],
        lr_end=request["rate"] / 10,
        adam_beta1=_BETAS[0],
        adam_beta2=_BETAS[1],
        lr_warm_up_steps=_WARMUP,
        lr_decay_steps=int(_DECAY * real_rows.STEPS),
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
    numbers = real_rows.measured(arrays, stream.held_out(), stream.mean)
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
  """Each kind's points at their best rates, sparsest first; prints all points.

  Args:
    train: trains (kind, rate, sparsity) triples and yields their points.
    kinds: sparsities of each.
  """
  wanted = [
    (kind, rate, value)
    for kind, values in kinds.items()
    for value in values
    for rate in _RATES
  ]
  score = lambda point: point.fvu * point.l0**0.5
  best: dict[tuple[str, float], Point] = {}
  for point in train(wanted):
    print(_row(point), flush=True)
    key = point.name, point.sparsity
    if key not in best or score(point) < score(best[key]):
      best[key] = point
  return {
    kind: sorted(
      (best[kind, value] for value in values), key=lambda point: point.l0
    )
    for kind, values in kinds.items()
  }


def main() -> None:
  """Trains, measures, prints a table, and draws the figure."""
  print(
    f"{workers.machine()}, {datetime.date.today()}, {real_rows.STEPS} steps of {real_rows.BATCH}"
    f" rows, {_WIDTH} latents, rates {_RATES}\n"
  )
  print("| SAE | rate | lambda or k | L0 | FVU | never fired |")
  print("|---|---|---|---|---|---|", flush=True)
  with tempfile.TemporaryDirectory() as name:
    path = pathlib.Path(name) / "rows.npy"
    real_rows.write_rows(path)
    best = _tuned(_ours(path, pathlib.Path(name) / "run"), _OURS)
    if train_step.installed("sae_lens"):
      worker = workers.Worker(
        __name__, "sae_lens", python=train_step.peers_python()
      )
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

  figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
  for name, points in best.items():
    axis.plot(
      [point.l0 for point in points],
      [point.fvu for point in points],
      "s--" if name.startswith("SAELens") else "o-",
      markersize=4,
      linewidth=1.2,
      label=name,
    )
  axis.set(
    xscale="log",
    xlabel="L0 (active latents a row)",
    ylabel="FVU on held-out rows",
  )
  axis.legend(
    frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5)
  )
  axis.spines[["top", "right"]].set_visible(False)
  axis.set_title(
    f"{_WIDTH} latents, {real_rows.STEPS * real_rows.BATCH:,} tokens, each at its best rate",
    fontsize=10,
  )
  _FIGURE.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(_FIGURE, dpi=150)


if __name__ == "__main__":
  _serve_sae_lens()

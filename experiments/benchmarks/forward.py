"""Our forward pass against transformers' in torch, on the same weights.

Tokens a second up to the layer where an SAE reads, and through the whole model
with the loss, and the peak memory of each. Torch runs eager, its default
attention, as a user would run it.

  python -m experiments.benchmark forward
      Gemma 3 270M in float32, up to layer 9.
  python -m experiments.benchmark forward --model=gemma-2-2b
      Gemma 2 2B's shapes in bfloat16, with random weights that transformers
      makes and saves and we load, up to layer 12 as the paper reads; for a GPU.

"Share of a large product's" is the matrix products that the work can't do
without, at the rate of a large product of the same type, in whichever library
it is faster, measured in the same process.
"""

from __future__ import annotations

import datetime
import statistics
import sys
import tempfile

import numpy as np
from absl import flags

from experiments.benchmarks import workers
from gemmascope_jax.gemma import costs

_RANDOM = "gemma-2-2b"
_MODEL = flags.DEFINE_enum(
  "model", "demo", ["demo", _RANDOM], "forward: which model."
)
_DEPTH = flags.DEFINE_integer(
  "depth", 26, f"forward: layers of {_RANDOM}; fewer to try it."
)

# (batch, length), and the layers that run up to an SAE's site
_SHAPES = {
  "demo": ((8, 256), (2, 1024)),
  _RANDOM: ((8, 1024), (32, 1024)),
}
_LAYERS = {"demo": 9, _RANDOM: 13}
_TOLERANCES = {"demo": 2e-3, _RANDOM: 2e-2}  # relative; bfloat16
_ROUNDS = 5
_JOBS = ("layers", "loss")
_SQUARE = {"demo": 2048, _RANDOM: 8192}  # of the product


def _tokens(shape) -> np.ndarray:
  tokens = np.random.default_rng(0).integers(300, 200_000, shape)
  tokens[:, 0] = 2
  return tokens.astype(np.int32)


def _serve_jax(model: str, folder: str) -> None:
  import functools

  import jax
  import jax.numpy as jnp

  from gemmascope_jax import gemma

  dtype = jnp.float32 if model == "demo" else jnp.bfloat16
  lm = gemma.load("demo" if model == "demo" else folder, dtype)
  layers = min(_LAYERS[model], lm.config.num_layers)

  @functools.partial(jax.jit, static_argnums=0)
  def run(job, params, tokens):
    if job == "layers":
      out = gemma.forward(
        lm.config, params, tokens, num_layers=layers, logits=False
      )
      return jnp.abs(out.residual.astype(jnp.float32)).mean()
    return gemma.next_token_losses(lm.config, params, tokens).mean()

  product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
  square = jnp.ones((_SQUARE[model], _SQUARE[model]), dtype) / 64

  def measure(request):
    if request["job"] == "flops":
      length = request["length"]
      part = costs.flops_of_token(lm.config, layers, length)
      whole = costs.flops_of_token(lm.config, lm.config.num_layers, length)
      whole += costs.unembedding_flops(lm.config)
      return {"layers": part, "loss": whole}
    if request["job"] == "product":
      product(square).block_until_ready()
      return None
    value = float(run(request["job"], lm.params, _tokens(request["shape"])))
    return [value, workers.device_gib()]

  workers.serve(measure)


def _serve_torch(model: str, folder: str) -> None:
  import torch
  import transformers

  from gemmascope_jax.gemma.weights import demo

  device = workers.torch_device()
  if model == "demo":
    path = demo.path()
    lm = transformers.AutoModelForCausalLM.from_pretrained(
      path.parent, gguf_file=path.name, dtype=torch.float32
    )
  else:
    lm = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.bfloat16
    )
  lm = lm.eval().to(device)
  every = lm.model.layers
  some = every[: _LAYERS[model]]
  square = torch.ones(
    (_SQUARE[model], _SQUARE[model]), dtype=lm.dtype, device=device
  )
  square /= 64

  @torch.inference_mode()
  def measure(request):
    if request["job"] == "attention":
      return lm.config._attn_implementation
    if request["job"] == "product":
      torch.matmul(square, square)
      workers.torch_device_gib()  # waits
      return None
    tokens = torch.from_numpy(_tokens(request["shape"]).astype(np.int64))
    tokens = tokens.to(device)
    if request["job"] == "loss":
      lm.model.layers = every
      value = float(lm(tokens, labels=tokens, use_cache=False).loss)
      return [value, workers.torch_device_gib()]
    lm.model.layers = some
    stream = []
    hook = lm.model.layers[-1].register_forward_hook(
      lambda module, args, out: stream.append(
        out[0] if isinstance(out, tuple) else out
      )
    )
    lm.model(tokens, use_cache=False)
    hook.remove()
    value = float(stream[0].float().abs().mean())
    return [value, workers.torch_device_gib()]

  workers.serve(measure)


def _save_random(folder: str, depth: int) -> None:
  """Gemma 2 2B's shapes (transformers' default), as a folder of weights."""
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.Gemma2Config(
    num_hidden_layers=depth, dtype="bfloat16", tie_word_embeddings=True
  )
  with torch.device(workers.torch_device()):
    lm = transformers.AutoModelForCausalLM.from_config(
      config, dtype=torch.bfloat16
    )
  lm.save_pretrained(folder)


def main() -> None:
  """Measures, and prints a table for docs/benchmarks.md."""
  model = _MODEL.value
  with tempfile.TemporaryDirectory() as folder:
    if model != "demo":
      # In a process of its own, whose memory goes with it.
      maker = workers.Worker(__name__, "save", folder, str(_DEPTH.value))
      maker.ask({})
      maker.close()
    rivals = {
      name: workers.Worker(__name__, name, model, folder)
      for name in ("jax", "torch")
    }
    attention = rivals["torch"].ask({"job": "attention"})["value"]
    rate, seconds = _product_rate(rivals, _SQUARE[model])
    print(
      f"{workers.machine()}, {datetime.date.today()}, {_ROUNDS} rounds, torch"
      f" with {attention} attention; a large product: {rate / 1e12:.3g} TFLOP/s"
      f" ({seconds})\n"
    )
    print(
      "| tokens | work | ours, tokens/s | torch | ratio | share of a large"
      " product's | torch's | ours, GiB | torch | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for shape in _SHAPES[model]:
      for job in _JOBS:
        print(_compare(rivals, model, shape, job, rate), flush=True)
    for worker in rivals.values():
      worker.close()


def _product_rate(rivals, side: int) -> tuple[float, str]:
  """FLOP/s of a large product in the faster library, and each one's."""
  rates = {}
  for name, worker in rivals.items():
    times = [worker.ask({"job": "product"})["seconds"] for _ in range(10)]
    rates[name] = 2 * side**3 / min(times)
  said = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in rates.items())
  return max(rates.values()), said


def _compare(rivals, model, shape, job, rate) -> str:
  request = {"job": job, "shape": shape}
  found = {name: [] for name in rivals}
  for worker in rivals.values():
    worker.ask(request)  # compiles, warms caches
  for _ in range(_ROUNDS):
    for name, worker in rivals.items():
      found[name].append(worker.ask(request))
  ours, theirs = found["jax"], found["torch"]
  values = [answers[0]["value"][0] for answers in (ours, theirs)]
  if not np.isclose(*values, rtol=_TOLERANCES[model]):
    raise RuntimeError(
      f"{job}: ours gives {values[0]}, torch {values[1]}: not the same"
      " computation"
    )
  rows, length = shape[0] * shape[1], shape[1]
  flops = rivals["jax"].ask({"job": "flops", "length": length})["value"][job]
  median = lambda answers: statistics.median(a["seconds"] for a in answers)
  share = lambda answers: rows * flops / median(answers) / rate
  # What the device holds where there is one, else the process.
  peak = lambda answers: max(a["value"][1] or a["peak_gib"] for a in answers)
  # The ratio is of neighbours in time, so that noise cancels.
  speed = statistics.median(
    t["seconds"] / o["seconds"] for o, t in zip(ours, theirs, strict=True)
  )
  label = "with the loss"
  if job == "layers":
    label = f"to layer {min(_LAYERS[model], _DEPTH.value)}"
  return (
    f"| {shape[0]} x {shape[1]} | {label} | {rows / median(ours):.0f} |"
    f" {rows / median(theirs):.0f} | {speed:.2f} | {share(ours):.2f} |"
    f" {share(theirs):.2f} | {peak(ours):.2f} | {peak(theirs):.2f} |"
    f" {peak(ours) / peak(theirs):.2f} |"
  )


def _serve_save(folder: str, depth: str) -> None:
  workers.serve(lambda request: _save_random(folder, int(depth)))


if __name__ == "__main__":
  serve = {"jax": _serve_jax, "torch": _serve_torch, "save": _serve_save}
  serve[sys.argv[1]](*sys.argv[2:])

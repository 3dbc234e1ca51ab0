"""Gemma 3 270M: the evaluation pass against transformers with hooks, float32.

Of a batch: the model's own losses, and for each SAE at res.5 the losses with its
reconstruction spliced in, the KL to the model's own predictions, L0 and squared
error. Ours runs the layers before the site once and never holds logits whole; a
user's loop over torch hooks runs the whole model for each SAE and holds
[S, T, 262,144] logits. Then what one more SAE costs, and a second study that
finds everything measured.
"""

from __future__ import annotations

import datetime
import statistics
import sys
import tempfile

import numpy as np

from experiments.benchmarks import workers

_SHAPE = (4, 256)
_SITE, _LAYER, _LATENTS = "res.5", 5, 4096
_COUNTS = (1, 2, 4)
_ROUNDS = 3
# Of a random direction at this site, the threshold that about 50 in 4,096 pass.
_THRESHOLD = 340.0
_TOLERANCE = 5e-3  # of losses and KL, between the two libraries


def _tokens() -> np.ndarray:
  tokens = np.random.default_rng(0).integers(300, 200_000, _SHAPE)
  tokens[:, 0] = 2
  return tokens.astype(np.int32)


def _sae(number: int) -> dict[str, np.ndarray]:
  w_dec = np.random.default_rng(number).normal(size=(_LATENTS, 640))
  w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
  return {
    "w_enc": np.ascontiguousarray(w_dec.T, np.float32),
    "b_enc": np.zeros(_LATENTS, np.float32),
    "w_dec": w_dec.astype(np.float32),
    "b_dec": np.zeros(640, np.float32),
    "threshold": np.full(_LATENTS, _THRESHOLD, np.float32),
  }


def _serve_jax() -> None:
  import jax
  import jax.numpy as jnp

  from gemmascope_jax import gemma
  from gemmascope_jax.data.policy import TokenPolicy
  from gemmascope_jax.sae.sae import SAE, Params
  from gemmascope_jax.studies import measure, splice
  from gemmascope_jax.studies.replacements import FromSAE

  lm = gemma.load("demo")
  policy = TokenPolicy.of(lm.tokenizer)
  saes = {
    str(n): FromSAE(jax.tree.map(jnp.asarray, SAE(Params(**_sae(n)))))
    for n in range(max(_COUNTS))
  }
  shift = np.zeros(640)
  folder = tempfile.mkdtemp()

  def run(request):
    some = {str(n): saes[str(n)] for n in range(request["saes"])}
    if request["cached"]:
      record, found = measure.measure(
        lm,
        _SITE,
        some,
        _tokens(),
        policy,
        shift,
        folder,
        batch=_SHAPE[0],
        progress=False,
      )
    else:
      record, found = splice.run_batch(
        lm, _SITE, some, _tokens(), policy, shift
      )
    first = found["0"]
    return [
      record.clean().mean,
      first.loss_spliced(record).mean,
      first.divergence(record).mean,
      first.l0(record).mean,
    ]

  workers.serve(run)


def _serve_torch() -> None:
  import torch
  import transformers
  from torch.nn.functional import log_softmax

  from gemmascope_jax.gemma.weights import demo

  path = demo.path()
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  ).eval()
  layer = model.model.layers[_LAYER]
  saes = [
    {name: torch.from_numpy(value) for name, value in _sae(n).items()}
    for n in range(max(_COUNTS))
  ]
  tokens = torch.from_numpy(_tokens().astype(np.int64))
  following = tokens[:, 1:, None]

  def hooked(hook):
    handle = layer.register_forward_hook(hook)
    logits = model(tokens, use_cache=False).logits[:, :-1]
    handle.remove()
    return log_softmax(logits, dim=-1)

  def loss(predicted):
    # BOS is not counted.
    return -predicted.gather(2, following)[:, 1:].mean()

  @torch.inference_mode()
  def run(request):
    seen = []

    def capture(module, arguments, out):
      seen.append(out[0] if isinstance(out, tuple) else out)

    own = hooked(capture)
    (x,) = seen
    found = []
    for sae in saes[: request["saes"]]:
      pre = x @ sae["w_enc"] + sae["b_enc"]
      latents = torch.where(pre > sae["threshold"], pre, 0.0).relu()
      x_hat = latents @ sae["w_dec"] + sae["b_dec"]
      x_hat[:, 0] = x[:, 0]

      def replace(module, arguments, out, x_hat=x_hat):
        return (x_hat, *out[1:]) if isinstance(out, tuple) else x_hat

      spliced = hooked(replace)
      l0 = (latents[:, 1:] > 0).sum(-1).float().mean()
      float(torch.square(x_hat - x).sum())
      kl = torch.zeros(())
      if request["kl"]:
        kl = (own.exp() * (own - spliced)).sum(-1)[:, 1:].mean()
      found.append([loss(own), loss(spliced), kl, l0])
    return [float(each) for each in found[0]]

  workers.serve(run)


def main() -> None:
  """Measures, and prints a table for docs/benchmarks.md."""
  rivals = {name: workers.Worker(__name__, name) for name in ("jax", "torch")}
  print(
    f"{workers.machine()}, {datetime.date.today()}, {_ROUNDS} rounds,"
    f" {_SHAPE[0]} x {_SHAPE[1]} tokens, {_LATENTS} latents at {_SITE}\n"
  )
  print("| SAEs | ours, s | torch, s | ratio | torch without KL, s | ratio |")
  print("|---|---|---|---|---|---|", flush=True)
  times = {}
  for count in _COUNTS:
    times[count] = _compare(rivals, count)
  one, most = _COUNTS[0], _COUNTS[-1]
  print("\n| each further SAE | seconds | share of the first |")
  print("|---|---|---|")
  for name in ("jax", "torch"):
    more = (times[most][name] - times[one][name]) / (most - one)
    print(f"| {name} | {more:.2f} | {more / times[one][name]:.2f} |")
  cached = {"saes": most, "cached": True, "kl": True}
  rivals["jax"].ask(cached)
  again = statistics.median(
    rivals["jax"].ask(cached)["seconds"] for _ in range(_ROUNDS)
  )
  print(
    f"\nA second study of {most} SAEs on the same tokens: {again:.3f} s,"
    f" {again / times[most]['jax']:.4f} of the first."
  )
  for worker in rivals.values():
    worker.close()


def _compare(rivals, count: int) -> dict[str, float]:
  full = {"saes": count, "cached": False, "kl": True}
  asked = {
    "jax": full,
    "torch": full,
    "torch without KL": full | {"kl": False},
  }
  worker_of = lambda name: rivals[name.split()[0]]
  found = {name: [] for name in asked}
  values = {n: worker_of(n).ask(r)["value"] for n, r in asked.items()}
  if not np.allclose(values["jax"], values["torch"], rtol=_TOLERANCE):
    raise RuntimeError(
      f"ours gives {values['jax']}, torch {values['torch']}: not the same"
      " computation"
    )
  for _ in range(_ROUNDS):
    for name, request in asked.items():
      found[name].append(worker_of(name).ask(request)["seconds"])
  # Ratios are of neighbours in time, so that noise cancels.
  ratio = lambda name: statistics.median(
    t / o for o, t in zip(found["jax"], found[name], strict=True)
  )
  times = {name: statistics.median(each) for name, each in found.items()}
  print(
    f"| {count} | {times['jax']:.2f} | {times['torch']:.2f} |"
    f" {ratio('torch'):.2f} | {times['torch without KL']:.2f} |"
    f" {ratio('torch without KL'):.2f} |",
    flush=True,
  )
  return times


if __name__ == "__main__":
  {"jax": _serve_jax, "torch": _serve_torch}[sys.argv[1]]()

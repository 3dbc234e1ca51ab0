"""Gemma 3 270M: the evaluation pass against transformers with hooks, float32.

For SAEs of random weights at res.5: each token's clean loss, and for each SAE
its spliced loss, the KL divergence of the two predictions, active latents and
squared error. The rival is written as a user of transformers writes it: a hook
that captures the residual, for each SAE a whole forward pass with a hook that
replaces it, and logits [S, T, V]. A cheaper rival leaves the KL out; ours never
does. The same tokens, SAEs and counted positions on all sides; the numbers are
compared before anything is timed.

"Floor" is the matrix products that a pass of ours can't do without, at the rate
of a large product, in whichever library it is faster, measured in the same
rounds: the layers before the site once, those after it and the unembedding once
for the clean model and once for each SAE, and the SAEs' own.

Letters: S sequences, T tokens, D width of the site, M latents, V vocabulary.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import sys
import tempfile

import numpy as np
from absl import flags

from experiments.benchmarks import workers
from gemmascope_jax.gemma import costs

_SEQUENCES = flags.DEFINE_integer("sequences", 8, "evaluate: a batch.")
_LENGTH = flags.DEFINE_integer("length", 256, "evaluate: tokens of a sequence.")
_LATENTS = flags.DEFINE_integer("latents", 4096, "evaluate: of each SAE.")
_SAES = flags.DEFINE_list("saes", "1,2,4,8", "evaluate: SAEs in one pass.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "evaluate: rounds to measure.")

_LAYER = 5
_SITE = f"res.{_LAYER}"
_L0 = 50
_SQUARE = 2048  # of the product that gives the machine's rate
_TOLERANCE = 2e-3  # of means over the batch, relative
_RIVALS = {"ours": "jax", "HF": "torch", "HF, no KL": "torch"}


def _tokens(shape) -> np.ndarray:
  tokens = np.random.default_rng(0).integers(300, 200_000, shape)
  tokens[:, 0] = 2
  return tokens.astype(np.int32)


def _arrays(seed: int, width: int, latents: int) -> dict[str, np.ndarray]:
  """An SAE before its first step: tied unit directions, no threshold yet."""
  rng = np.random.default_rng(seed)
  w_dec = rng.standard_normal((latents, width), np.float32)
  w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
  return {
    "w_enc": np.ascontiguousarray(w_dec.T),
    "b_enc": np.zeros(latents, np.float32),
    "w_dec": w_dec,
    "b_dec": np.zeros(width, np.float32),
    "threshold": np.zeros(latents, np.float32),
  }


def _summary(keep, keep_loss, clean, of_each) -> list[list[float]]:
  """Means of the clean loss, and of the numbers of each SAE."""
  mean = lambda values, mask: float(np.asarray(values, np.float64)[mask].mean())
  found = [[mean(clean, keep_loss)]]
  for loss, kl, active, squared_error in of_each:
    part = [mean(loss, keep_loss)]
    part += [] if kl is None else [mean(kl, keep_loss)]
    found.append(part + [mean(active, keep), mean(squared_error, keep)])
  return found


def _serve_jax() -> None:
  import jax
  import jax.numpy as jnp

  from gemmascope_jax import gemma
  from gemmascope_jax.data.policy import TokenPolicy
  from gemmascope_jax.sae.sae import SAE, Params
  from gemmascope_jax.studies import measure, splice
  from gemmascope_jax.studies.replacements import FromSAE, match_l0

  lm = gemma.load("demo")
  policy = TokenPolicy.of(lm.tokenizer)
  problem = {}

  def prepare(request):
    """Makes the SAEs; says what the rival has to know, and what it costs."""
    tokens = _tokens(request["shape"])
    record = gemma.forward(
      lm.config, lm.params, tokens, taps=[_SITE], num_layers=_LAYER + 1
    )
    x = np.asarray(record.acts[_SITE])[policy.keep(tokens)]
    saes, scales = {}, []
    for seed in range(request["saes"]):
      arrays = _arrays(seed, lm.config.width, request["latents"])
      sae = match_l0(SAE(Params(**arrays)), x[:2048], _L0)
      # The decoder's rows have unit length before it is scaled.
      gain = float(np.linalg.norm(sae.params.w_dec[0]))
      scales.append([float(sae.params.threshold[0]), gain])
      saes[f"sae {seed}"] = FromSAE(jax.tree.map(jnp.asarray, sae))
    problem.update(tokens=tokens, saes=saes, shift=x.mean(0, dtype=np.float64))
    problem["folder"] = tempfile.TemporaryDirectory()
    return {
      "width": lm.config.width,
      "scales": scales,
      "policy": policy.to_dict(),
      "flops": _flops(lm.config, request["shape"], request["latents"]),
    }

  @jax.jit
  def product(a):
    return jnp.matmul(a, a, precision="highest")

  square = jnp.ones((_SQUARE, _SQUARE))

  def run(request):
    if request["job"] == "prepare":
      return prepare(request)
    if request["job"] == "product":
      product(square).block_until_ready()
      return None
    names = list(problem["saes"])[: request["saes"]]
    saes = {name: problem["saes"][name] for name in names}
    given = (lm, _SITE, saes, problem["tokens"], policy, problem["shift"])
    if request["job"] == "measure":
      site, records = measure.measure(
        *given, problem["folder"].name, batch=request["batch"], progress=False
      )
    else:
      site, records = splice.run_batch(*given)
    of_each = [
      (each.loss, each.kl, each.active, each.squared_error)
      for each in records.values()
    ]
    return _summary(site.keep, site.keep_loss, site.loss_clean, of_each)

  workers.serve(run)


def _flops(config, shape, latents: int) -> dict[str, list[float]]:
  """[of a pass without SAEs, of each SAE], in ours and with hooks."""
  layer = costs.flops_of_token(config, 1, shape[1])
  unembedding = costs.unembedding_flops(config)
  sae = 4 * config.width * latents
  rows = shape[0] * shape[1]
  whole = rows * (config.num_layers * layer + unembedding)
  after = (config.num_layers - _LAYER - 1) * layer
  return {
    "jax": [whole, rows * (after + unembedding + sae)],
    "torch": [whole, whole + rows * sae],
  }


def _serve_torch() -> None:
  import torch
  import transformers
  from torch.nn import functional

  from gemmascope_jax.data.policy import TokenPolicy
  from gemmascope_jax.gemma.weights import demo

  torch.set_num_threads(len(os.sched_getaffinity(0)))  # as XLA does
  path = demo.path()
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  ).eval()
  layer = model.model.layers[_LAYER]
  problem = {}

  def prepare(request):
    policy = TokenPolicy.from_dict(request["policy"])
    tokens = _tokens(request["shape"])
    saes = []
    for seed, (threshold, gain) in enumerate(request["scales"]):
      arrays = _arrays(seed, request["width"], request["latents"])
      arrays["threshold"] += np.float32(threshold)
      arrays["w_dec"] = np.float32(gain) * arrays["w_dec"]
      saes.append({key: torch.from_numpy(a) for key, a in arrays.items()})
    problem.update(
      tokens=torch.from_numpy(tokens.astype(np.int64)),
      keep=policy.keep(tokens),
      keep_loss=policy.keep_loss(tokens),
      saes=saes,
    )

  def logits_with(hook):
    handle = layer.register_forward_hook(hook)
    logits = model(problem["tokens"], use_cache=False).logits
    handle.remove()
    return logits[:, :-1]

  def with_kl(saes, x, logits, targets):
    """(clean losses, [(losses, KL) of each SAE]) by log_softmax."""
    pick = lambda logp: -logp.gather(2, targets[..., None])[..., 0]
    own = functional.log_softmax(logits, dim=-1)
    del logits
    found = []
    for x_hat in saes:
      logp = functional.log_softmax(logits_with(replace(x, x_hat)), dim=-1)
      kl = (own.exp() * (own - logp)).sum(dim=-1)
      found.append((pick(logp), kl))
      del logp
    return pick(own), found

  def without_kl(saes, x, logits, targets):
    """The same by cross_entropy, with None for the KL."""
    entropy = lambda logits: functional.cross_entropy(
      logits.flatten(0, 1), targets.flatten(), reduction="none"
    ).view(targets.shape)
    clean = entropy(logits)
    del logits
    spliced = lambda x_hat: entropy(logits_with(replace(x, x_hat)))
    return clean, [(spliced(x_hat), None) for x_hat in saes]

  def replace(x, x_hat):
    x_hat = torch.where(torch.from_numpy(problem["keep"])[..., None], x_hat, x)
    return lambda module, args, out: (
      (x_hat, *out[1:]) if isinstance(out, tuple) else x_hat
    )

  def reconstruct(sae, x):
    pre = x @ sae["w_enc"] + sae["b_enc"]
    latents = torch.relu(pre) * (pre > sae["threshold"])
    return latents @ sae["w_dec"] + sae["b_dec"], (latents > 0).sum(dim=-1)

  square = torch.ones(_SQUARE, _SQUARE)

  @torch.inference_mode()
  def run(request):
    if request["job"] == "prepare":
      return prepare(request)
    if request["job"] == "product":
      square @ square
      return None
    stream = []
    capture = lambda module, args, out: stream.append(
      out[0] if isinstance(out, tuple) else out
    )
    work = with_kl if request["kl"] else without_kl
    targets = problem["tokens"][:, 1:]
    # The logits are the callee's alone, so that it can let them go.
    given = [logits_with(capture)]
    (x,) = stream
    made = [reconstruct(s, x) for s in problem["saes"][: request["saes"]]]
    saes = [x_hat for x_hat, _ in made]
    clean, found = work(saes, x, given.pop(), targets)
    of_each = [
      (loss, kl, active, torch.square(x_hat - x).sum(dim=-1))
      for (loss, kl), (x_hat, active) in zip(found, made, strict=True)
    ]
    return _summary(problem["keep"], problem["keep_loss"], clean, of_each)

  workers.serve(run)


def main() -> None:
  """Measures, and prints tables for docs/benchmarks.md."""
  counts = sorted({int(count) for count in _SAES.value})
  if not counts or counts[0] < 1 or _ROUNDS.value < 1:
    raise ValueError(
      f"--saes={','.join(_SAES.value)} --rounds={_ROUNDS.value}: expected"
      " positive numbers"
    )
  shape = [_SEQUENCES.value, _LENGTH.value]
  processes = {
    name: workers.Worker(__name__, name) for name in sorted({"jax", "torch"})
  }
  request = {
    "job": "prepare",
    "shape": shape,
    "latents": _LATENTS.value,
    "saes": counts[-1],
  }
  problem = processes["jax"].ask(request)["value"]
  processes["torch"].ask({**request, **problem})
  print(
    f"{workers.machine()}, {datetime.date.today()}, {_ROUNDS.value} rounds,"
    f" {shape[0]} x {shape[1]} tokens, {_LATENTS.value} latents at {_SITE}\n"
  )
  found, apart = {}, 0.0
  for count in counts:
    found[count], differ = _rounds(processes, count, shape[0])
    apart = max(apart, differ)
  rate = _rate(found)
  floor = lambda name, count: (
    (problem["flops"][name][0] + count * problem["flops"][name][1]) / rate
  )
  print(
    "| SAEs | floor, s | ours, s | times the floor | HF, s | ours is faster by |"
    " HF without KL, s | ours is faster by | ours, GiB | HF | HF without KL |"
  )
  print("|---|---|---|---|---|---|---|---|---|---|---|")
  for count in counts:
    print(_row(count, floor("jax", count), found[count]))
  if len(counts) > 1:
    _print_further(counts, found, problem["flops"], rate)
  _print_kept(counts, found)
  print(
    f"\nThe floor is at {rate / 1e9:.0f} GFLOP/s. Losses, KL, L0 and squared"
    f" error of ours and HF's: at most {apart:.1e} apart (relative, means over"
    f" the batch; tolerance {_TOLERANCE:.0e})."
  )
  for process in processes.values():
    process.close()


def _rounds(processes, count: int, batch: int):
  """Answers of every round by job, and how far the libraries' numbers differ."""
  jobs = {
    "ours": {"job": "pass"},
    "HF": {"job": "pass", "kl": True},
    "HF, no KL": {"job": "pass", "kl": False},
    "kept": {"job": "measure", "batch": batch},
    "product, jax": {"job": "product"},
    "product, torch": {"job": "product"},
  }
  where = {**_RIVALS, "kept": "jax"}
  where |= {f"product, {name}": name for name in processes}
  ask = lambda name: processes[where[name]].ask({**jobs[name], "saes": count})
  # The first pass compiles and warms; the first "kept" measures and writes.
  first = {name: ask(name)["value"] for name in jobs}
  apart = max(
    _apart(first["ours"], first["HF"], count),
    _apart([p[:1] + p[2:] for p in first["ours"]], first["HF, no KL"], count),
  )
  # What was kept from fewer SAEs has a KL that is the same to rounding only.
  _apart(first["kept"], first["ours"], count, 1e-6)
  answers = {name: [] for name in jobs}
  for _ in range(_ROUNDS.value):
    for name in jobs:
      answers[name].append(ask(name))
  if answers["kept"][-1]["value"] != first["kept"]:
    raise RuntimeError(f"{count} SAEs: what was kept is not what was measured")
  return answers, apart


def _apart(ours, theirs, count: int, tolerance: float = _TOLERANCE) -> float:
  """The largest relative difference; raises if it is too large."""
  ours, theirs = (np.array(sum(each, [])) for each in (ours, theirs))
  if ours.shape != theirs.shape or not np.allclose(
    ours, theirs, rtol=tolerance, atol=0
  ):
    raise RuntimeError(
      f"{count} SAEs: ours gives {json.dumps(ours.tolist())}, the"
      f" other {json.dumps(theirs.tolist())}: not the same computation"
    )
  return float(np.max(np.abs(ours - theirs) / np.abs(theirs)))


def _seconds(answers) -> float:
  return statistics.median(answer["seconds"] for answer in answers)


def _rate(found) -> float:
  """FLOP/s of a large product, in whichever library it is faster."""
  seconds = [
    _seconds(sum((found[count][name] for count in found), []))
    for name in ("product, jax", "product, torch")
  ]
  return 2 * _SQUARE**3 / min(seconds)


def _row(count: int, floor: float, answers) -> str:
  # The ratio is of neighbours in time, so that noise cancels.
  ratio = lambda name: statistics.median(
    t["seconds"] / o["seconds"]
    for o, t in zip(answers["ours"], answers[name], strict=True)
  )
  peak = lambda name: max(answer["peak_gib"] for answer in answers[name])
  seconds = {name: _seconds(answers[name]) for name in _RIVALS}
  return (
    f"| {count} | {floor:.2f} | {seconds['ours']:.2f} |"
    f" {seconds['ours'] / floor:.2f} | {seconds['HF']:.2f} |"
    f" {ratio('HF'):.2f} | {seconds['HF, no KL']:.2f} |"
    f" {ratio('HF, no KL'):.2f} | {peak('ours'):.2f} | {peak('HF'):.2f} |"
    f" {peak('HF, no KL'):.2f} |"
  )


def _print_further(counts, found, flops, rate: float) -> None:
  """What each further SAE costs: the slope of a line through the medians."""
  print(
    "\n| each further SAE | floor, s | measured, s | share of a pass with one,"
    " predicted | measured |"
  )
  print("|---|---|---|---|---|")
  for name, library in _RIVALS.items():
    seconds = [_seconds(found[count][name]) for count in counts]
    slope, start = further(counts, seconds)
    base, each = flops[library]
    print(
      f"| {name} | {each / rate:.2f} | {slope:.2f} | {each / (base + each):.2f}"
      f" | {slope / (start + slope):.2f} |"
    )


def further(counts, seconds) -> tuple[float, float]:
  """(seconds of each further SAE, seconds of a pass without any), fitted."""
  slope, start = np.polyfit(counts, seconds, 1)
  return float(slope), float(start)


def _print_kept(counts, found) -> None:
  print("\n| a second study of the same, SAEs | s | share of the first |")
  print("|---|---|---|")
  for count in counts:
    kept, ours = (_seconds(found[count][name]) for name in ("kept", "ours"))
    print(f"| {count} | {kept:.3f} | {kept / ours:.4f} |")


if __name__ == "__main__":
  {"jax": _serve_jax, "torch": _serve_torch}[sys.argv[1]]()

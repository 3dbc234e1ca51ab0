"""Made-up results of the real sizes; they live in these tests only."""

import json
import math
import random

import pytest

_WORDS = (
  " the| of| and| to| in| was| capital| France| river|,|.| city| by| which"
  "| century| king| first| built| near| north|ern|ing| museum| university"
  "| film| album| season| team| government| station| born| (|)|\n|\n\n| 19"
  "|8|4|'s| population| census| people| its| large|   | été| Zürich| 東京"
).split("|")


def _value(mean, stderr, n=64):
  return {"mean": mean, "stderr": stderr, "n": n}


def _row(name, kind, delta, fvu, l0=None, **more):
  zero = 9.41
  return {
    "name": name,
    "kind": kind,
    "l0": None if l0 is None else _value(l0, 0.008 * l0),
    "fvu": _value(fvu, 0.012 * fvu),
    "delta_loss": _value(delta, 0.01 + 0.02 * delta),
    "loss_recovered": _value(1 - delta / zero, 0.002),
    **more,
  }


def _sae(coefficient, width, l0, delta, fvu, dead):
  return _row(
    f"sparsity {coefficient:g}",
    "sae",
    delta,
    fvu,
    l0,
    family="jumprelu",
    width=width,
    sparsity_coefficient=coefficient,
    release=f"runs/quickstart/releases/width_4k/average_l0_{l0:.0f}",
    train_tokens=1_048_576,
    dead_fraction=dead,
  )


@pytest.fixture
def fidelity():
  """A fidelity result as JSON: four SAEs and every baseline."""
  return make_fidelity()


def make_fidelity():
  saes = [
    _sae(1e-4, 4096, 148.3, 0.218, 0.132, 0.0),
    _sae(2e-4, 4096, 84.6, 0.341, 0.171, 0.0021),
    _sae(4e-4, 4096, 46.1, 0.527, 0.224, 0.0134),
    _sae(8e-4, 4096, 23.9, 0.843, 0.301, 0.071),
  ]
  return {
    "study": "fidelity",
    "format": 1,
    "model": {
      "label": "gemma-3-270m (Q4_K_M, dequantised)",
      "weights_hash": "3f9a" * 16,
      "tokenizer": "c01d" * 4,
    },
    "site": "res.5",
    "tokens": {
      "sequences": 64,
      "length": 256,
      "counted": 16_300,
      "sources": ["wikipedia_en"],
      "split": "held_out",
    },
    "token_policy": {"excluded_ids": [0, 1, 2], "pad_id": 0},
    "config": {"seed": 0, "site": "res.5", "batch_size": 1024},
    "code": "0.1.0+1a51ffa2b3c4",
    "clean_loss": _value(3.412, 0.041),
    "rows": [
      *saes,
      _row("mean ablation", "baseline", 3.92, 1.0),
      _row("zero ablation", "baseline", 9.41, 2.87),
      _row("PCA, 50 components", "baseline", 1.12, 0.264, components=50),
      *(
        _row(
          f"untrained SAE at the L0 of {row['name']}",
          "baseline",
          delta,
          fvu,
          row["l0"]["mean"],
          of=row["name"],
        )
        for row, delta, fvu in zip(
          saes,
          (2.9, 3.4, 3.7, 3.85),
          (0.82, 0.88, 0.93, 0.96),
          strict=True,
        )
      ),
    ],
    "spectrum": {
      "components": [1, 2, 5, 10, 20, 50, 100, 200, 400],
      "fvu": [0.71, 0.62, 0.5, 0.42, 0.35, 0.264, 0.19, 0.105, 0.021],
    },
  }


@pytest.fixture
def latents():
  """A latents result as JSON: 36 latents x 6 contexts x 32 tokens."""
  return make_latents()


def make_latents():
  draw = random.Random(7)
  return {
    "study": "latents",
    "format": 1,
    "site": "res.5",
    "model": {"label": "gemma-3-270m (Q4_K_M, dequantised)"},
    "sae": {
      "name": "sparsity 0.0004",
      "l0": 46.1,
      "width": 4096,
      "release": "runs/quickstart/releases/width_4k/average_l0_46",
    },
    "tokens": {"rows": 130_000, "split": "train", "alive": 3_871},
    "latents": [_latent(draw, 17 + 111 * i) for i in range(36)],
  }


def _latent(draw, index):
  peak_value = draw.uniform(3, 400)
  counts = [
    round(4000 * math.exp(-0.35 * i) * draw.random()) for i in range(24)
  ]
  logits = [
    [draw.choice(_WORDS), round(draw.uniform(0.3, 2), 3)] for _ in range(8)
  ]
  return {
    "index": index,
    "frequency": 10 ** draw.uniform(-4.5, -1),
    "max": peak_value,
    "histogram": {
      "edges": [peak_value * i / 24 for i in range(25)],
      "counts": counts,
    },
    "top_logits": logits,
    "bottom_logits": [[text, -value] for text, value in logits[::-1]],
    "contexts": [_context(draw, peak_value * 0.97**i) for i in range(6)],
  }


def _context(draw, peak_value):
  values = [
    0.0 if draw.random() < 0.85 else peak_value * draw.random()
    for _ in range(32)
  ]
  peak = draw.randrange(8, 28)
  values[peak] = peak_value
  return {
    "pieces": [draw.choice(_WORDS) for _ in range(32)],
    "values": values,
    "peak": peak,
    "window": draw.randrange(512),
  }


@pytest.fixture
def metrics():
  """Training metrics as a list of lines: four members, 64 logged steps."""
  return make_metrics()


def make_metrics():
  lines = []
  for step in range(16, 1025, 16):
    seen = step / 1024
    for member, coefficient in enumerate((1e-4, 2e-4, 4e-4, 8e-4)):
      l0 = 20 + 1500 * math.exp(-6 * seen) / (1 + 4 * member) + 120 / 2**member
      lines.append(
        {
          "step": step,
          "name": f"sparsity {coefficient:g}",
          "loss": 0.3,
          "squared_error": 0.2,
          "l0": l0,
          "fvu": 0.12 * 1.3**member + 0.6 * math.exp(-9 * seen),
          "dead_fraction": 0.02 * member * seen,
          "threshold_mean": 0.01 + 0.02 * (1 + member) * seen,
          "kernel_share": 0.02 * math.exp(-2 * seen) / (1 + member),
          "sparsity_coefficient": coefficient,
          "learning_rate": 1e-3,
          "rows_per_second": 12_000.0,
          "rows": step * 1024,
          "firing_rates": {
            "from": -6.0,
            "to": 0.0,
            "counts": [round(9 * i * math.exp(-i / 4)) for i in range(24)],
            "never": 30 * member,
          },
        }
      )
  return lines


@pytest.fixture(scope="session")
def make_folders():
  """Function: folder -> (results, train, out) in it, with everything there."""

  def make(root):
    results, train = root / "results", root / "train"
    results.mkdir()
    train.mkdir()
    (results / "fidelity.json").write_text(json.dumps(make_fidelity()))
    (results / "latents.json").write_text(json.dumps(make_latents()))
    lines = [json.dumps(line) + "\n" for line in make_metrics()]
    (train / "metrics.jsonl").write_text("".join(lines))
    return results, train, root / "out"

  return make


@pytest.fixture
def folders(tmp_path, make_folders):
  """(results, train, out) folders with everything in them."""
  return make_folders(tmp_path)

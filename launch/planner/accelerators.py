"""Accelerators, as their makers describe them; and how much of that is reached.

Peaks are of dense products, for one chip. A TPU multiplies bfloat16: float32
("highest") takes six passes, "high" three.
"""

from __future__ import annotations

import dataclasses

# Of the peak, in a training step: the paper reached .508 on TPUv3; ours .51 on
# an H200 (docs/benchmarks.md).
UTILISATION = 0.5


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """One chip.

  Attributes:
    name: what it is called.
    peaks: operations a second by `sae.precision.PRECISIONS`.
    memory: bytes.
    bandwidth: bytes a second between memory and processor.
    dollars: of an hour, on demand; a round number to replace by yours.
  """

  name: str
  peaks: dict[str, float]
  memory: float
  bandwidth: float
  dollars: float

  def peak(self, precision: str) -> float:
    """Operations a second at this precision."""
    return self.peaks[precision]


def _tpu(name, bfloat16, gib, bandwidth, dollars):
  peaks = {
    "highest": bfloat16 / 6,
    "high": bfloat16 / 3,
    "default": bfloat16,
    "bfloat16": bfloat16,
  }
  return Accelerator(name, peaks, gib * 2**30, bandwidth, dollars)


def _gpu(name, float32, tf32, bfloat16, gib, bandwidth, dollars):
  peaks = {
    "highest": float32,
    "high": tf32,
    "default": tf32,
    "bfloat16": bfloat16,
  }
  return Accelerator(name, peaks, gib * 2**30, bandwidth, dollars)


ACCELERATORS = {
  each.name: each
  for each in (
    _tpu("tpu_v3", 123e12, 32, 0.9e12, 2.0),
    _tpu("tpu_v4", 275e12, 32, 1.2e12, 3.2),
    _tpu("tpu_v5e", 197e12, 16, 0.82e12, 1.2),
    _tpu("tpu_v5p", 459e12, 95, 2.77e12, 4.2),
    _tpu("tpu_v6e", 918e12, 32, 1.64e12, 2.7),
    _gpu("a100", 19.5e12, 156e12, 312e12, 80, 2.0e12, 2.0),
    _gpu("h100", 67e12, 494e12, 989e12, 80, 3.35e12, 3.0),
    _gpu("h200", 67e12, 494e12, 989e12, 141, 4.8e12, 3.5),
  )
}


def find(name: str) -> Accelerator:
  """The accelerator of that name.

  Raises:
    ValueError: there is none; lists what there is.
  """
  if name not in ACCELERATORS:
    raise ValueError(
      f"--accelerator={name}: expected one of {', '.join(ACCELERATORS)}; or"
      " --peak_tflops for another one"
    )
  return ACCELERATORS[name]

"""The precision figure shows the result's numbers, and says what has none."""

import numpy as np
import pytest

from gemmascope_jax.report import plotting
from gemmascope_jax.report.study_figures import precision as figure
from gemmascope_jax.studies.precision import study
from gemmascope_jax.studies.subjects import by_site, subject
from tests.data import tiny_gemma
from tests.studies.precision.flips_test import tokens_of
from tests.studies.precision.study_test import _sae

BYTES = {"float32": 4000, "bfloat16": 2000, "float16": 2000, "int4": 600}
FORMATS = ("bfloat16", "float16", "int4")


def _estimate(mean, stderr=1e-5):
  return {"mean": mean, "stderr": stderr, "n": 9}


def _made_up(saes=2, bad=("float16",), scale=1.0):
  """Result rows whose numbers tell format, part and SAE apart."""

  def row(number, part, where, format, f):
    lost = format in bad and where != "sae"
    gap = scale * 10.0 ** (f - 4) * (1 + part) * (-1) ** number
    return {
      "format": format,
      "in_format": where,
      "less_float32": {"delta_loss": None if lost else _estimate(gap)},
      "flips": None if lost else _estimate(abs(gap)),
      "not_finite": {"sequences": 9, "of": 9, "reason": "x"} if lost else None,
    }

  return {
    "saes": [
      {
        "name": f"s{number}",
        "site": "res.1",
        "float32": {"l0": _estimate(12.3)},
        "rows": [
          row(number, part, where, format, f)
          for part, where in enumerate(("sae", "lm", "both"))
          for f, format in enumerate(FORMATS)
        ],
        "bytes": BYTES,
        "seconds_per_1024_tokens": dict.fromkeys(BYTES, 0.05),
      }
      for number in range(saes)
    ],
    "lm": [{"format": f, "bytes": 10 * BYTES[f]} for f in BYTES],
    "speed": {"tokens": 1024, "device": "a machine"},
  }


def _drawn(result):
  with plotting.style():
    found = figure.draw(result)
    assert list(found) == ["precision"]
    plotting.png(found["precision"])
    return found["precision"].axes


def test_marks_are_the_differences_and_the_flips():
  result = _made_up()
  changes, flips, memory = _drawn(result)
  for sae, left, middle in zip(
    result["saes"], changes.containers, flips.containers, strict=True
  ):
    rows = [r for r in sae["rows"] if not r["not_finite"]]
    np.testing.assert_allclose(
      left[0].get_xdata(orig=False),
      [r["less_float32"]["delta_loss"]["mean"] for r in rows],
    )
    np.testing.assert_allclose(
      middle[0].get_xdata(orig=False), [100 * r["flips"]["mean"] for r in rows]
    )
    low, high = changes.get_xlim()
    assert (
      low
      < min(left[0].get_xdata(orig=False))
      < max(left[0].get_xdata(orig=False))
      < high
    )
  labels = [text.get_text() for text in changes.get_yticklabels()]
  assert labels[:4] == [
    "SAE in bfloat16",
    "SAE in float16",
    "SAE in int4",
    "model in bfloat16",
  ]
  assert [text.get_text() for text in changes.texts] == ["not finite"] * 2
  assert [text.get_position()[1] for text in changes.texts] == [4, 7]
  shares = [bar.get_width() for bar in memory.patches]
  assert shares == pytest.approx([50, 50, 15] * 3)
  texts = [text.get_text() for text in memory.texts]
  assert texts[2] == "600 B, 50 ms" and texts[5] == "6 kB"
  assert texts[8] == "6.6 kB"


@pytest.mark.parametrize("saes", [1, 9])
@pytest.mark.parametrize("bad, scale", [(FORMATS, 1), ((), 0.0)])
def test_nothing_known_and_no_difference_can_be_drawn(saes, bad, scale):
  changes, *_ = _drawn(_made_up(saes, bad, scale))
  assert len(changes.texts) == 2 * len(bad)


def test_some_that_are_not_finite_are_counted():
  result = _made_up()
  result["saes"][0]["rows"][0]["not_finite"] = {"sequences": 1}
  changes, *_ = _drawn(result)
  assert changes.texts[0].get_text() == "not finite for 1 of 2 SAEs"


def test_a_result_of_the_study_can_be_drawn(tmp_path):
  result = study.run(
    tiny_gemma.lm(),
    by_site([subject(_sae(), "sparse")]),
    tokens_of(),
    tiny_gemma.POLICY,
    tmp_path,
    formats=("int8",),
    lm_formats=("int8",),
    progress=False,
  )
  changes, *_ = _drawn(result)
  (marks,) = changes.containers
  assert len(marks[0].get_xdata(orig=False)) == 3

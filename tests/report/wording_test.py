import dataclasses

import pytest

from gemmascope_jax.report import results, wording
from gemmascope_jax.report.results import Value


@pytest.mark.parametrize(
  "name, words",
  [
    ("res.5", "residual stream after block 5"),
    ("mlp.0", "MLP output of block 0"),
    ("att.12", "attention heads of block 12, before W_O"),
    ("mlp_in.3", "normalised MLP input of block 3"),
    ("something else", "something else"),
  ],
)
def test_site(name, words):
  assert wording.site(name) == words


@pytest.mark.parametrize(
  "value, text",
  [(3e-4, "3e-4"), (1.25e-3, "1.25e-3"), (6e-5, "6e-5"), (2, "2e0"), (0, "0")],
)
def test_coefficient(value, text):
  assert wording.coefficient(value) == text


@pytest.mark.parametrize(
  "stderr, text",
  [
    (0.0123, "1.235 ± 0.012"),
    (0.034, "1.235 ± 0.034"),
    (0.036, "1.23 ± 0.04"),
    (0.5, "1.2 ± 0.5"),
    (12.0, "1.2 ± 12.0"),
    (None, "1.235"),
    (0.0, "1.235 ± 0.000"),
  ],
)
def test_plus_minus_shows_the_digits_that_the_error_allows(stderr, text):
  assert wording.plus_minus(Value(1.2345678, stderr, 8)) == text


def test_plus_minus_of_nothing():
  assert wording.plus_minus(None) == "–"


def test_tokens_leaves_out_what_is_not_recorded(fidelity):
  assert wording.tokens(fidelity["tokens"]) == (
    "16,300 tokens in 64 sequences of 256 from wikipedia_en (held out)"
  )
  assert wording.tokens({"counted": 1, "sequences": 1}) == (
    "1 token in 1 sequence"
  )
  assert wording.tokens({"rows": 1000, "split": "train"}) == (
    "1,000 activations (train)"
  )
  assert wording.tokens({"split": "train"}) == ""


def test_row_name_leaves_out_the_sae_it_is_matched_to(fidelity):
  rows = results.parse_fidelity(fidelity).rows
  assert wording.row_name(rows[-1]) == "untrained SAE"
  assert wording.row_name(rows[0]) == "sparsity 0.0001"


def test_headline_takes_the_sae_nearest_fifty(fidelity):
  text = wording.headline(results.parse_fidelity(fidelity))
  assert "sparsity 0.0004 with L0 46.1" in text
  assert "13% (mean ablation)" in text  # 0.527 / 3.92
  assert "47% (PCA, 50 components)" in text  # 0.527 / 1.12
  assert text.count("untrained SAE") == 1 and "14%" in text  # 0.527 / 3.7


def test_headline_without_a_live_sae(fidelity):
  for row in fidelity["rows"][:4]:
    row["l0"]["mean"] = 0
  assert wording.headline(results.parse_fidelity(fidelity)) is None


def test_small_sample(fidelity):
  result = results.parse_fidelity(fidelity)
  assert "64 sequences" in wording.small_sample_note(result)
  large = dataclasses.replace(result, clean_loss=Value(3.4, 0.01, 2048))
  assert wording.small_sample_note(large) is None


@pytest.mark.parametrize(
  "value, text",
  [
    (0, "0"),
    (8.1234, "8.12"),
    (0.00123, "0.00123"),
    (1234.4, "1,234"),
    (123456.0, "1.23e+05"),
    (1e-7, "1.00e-07"),
  ],
)
def test_number(value, text):
  assert wording.number(value) == text

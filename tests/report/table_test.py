import copy

import pytest

from gemmascope_jax.report import results, table


def _cells(line):
  return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


def test_columns_line_up(fidelity):
  lines = table.terminal_table(fidelity).split("\n")
  rule = next(i for i, line in enumerate(lines) if set(line) == {"-"})
  rows = [line for line in lines[rule:-1] if set(line) != {"-"}]
  assert len(rows) == 11
  assert {len(line) for line in rows} == {len(lines[rule])}
  # The ± of a column stand below each other.
  places = [[i for i, c in enumerate(row) if c == "±"] for row in rows[:4]]
  assert len(places[0]) == 4 and all(p == places[0] for p in places)
  assert len(lines[rule]) <= 88


def test_content_and_units(fidelity):
  text = table.terminal_table(fidelity)
  first = next(x for x in text.split("\n") if x.startswith("sparsity 0.0001"))
  assert " ".join(first.split()) == (
    "sparsity 0.0001 148.3 ± 1.2 0.218 ± 0.014 0.1320 ± 0.0016"
    " 97.68 ± 0.20 0.00"
  )
  for words in (
    "gemma-3-270m (Q4_K_M, dequantised)",
    "res.5",
    "16,300 tokens in 64 sequences of 256 from wikipedia_en (held out)",
    "clean loss 3.41 ± 0.04 nats/token",
    "nats/token",
    "mean ablation",
    "zero ablation",
    "PCA, 50 components",
    "untrained SAE",
    "one standard error over 64 sequences",
    "0.1.0+1a51ffa2b3c4",
  ):
    assert words in text
  mean = next(x for x in text.split("\n") if x.startswith("mean ablation"))
  assert mean.split()[2] == "–"  # no L0


def test_markdown_says_the_same(fidelity):
  lines = table.markdown_table(fidelity).split("\n")
  rows = [_cells(line) for line in lines if line.startswith("| ")]
  header, rows = rows[0], rows[1:]
  shown = table.table(results.parse_fidelity(fidelity))
  assert header[1:] == [
    "L0 (per token)",
    "delta loss (nats/token)",
    "FVU (fraction)",
    "recovered (% of loss)",
    "dead (%)",
  ]
  assert rows == [list(row) for group in shown.groups for row in group]
  assert all(len(row) == len(header) for row in rows)


def test_widths_and_families_are_shown_if_they_differ(fidelity):
  other = copy.deepcopy(fidelity["rows"][0])
  other |= {"name": "wide", "width": 65_536, "family": "topk"}
  assert "65,536" not in table.terminal_table(fidelity)
  fidelity["rows"].insert(4, other)
  text = table.terminal_table(fidelity)
  assert "65,536" in text and "TopK" in text and "width" in text


def test_empty_columns_are_left_out(fidelity):
  for row in fidelity["rows"]:
    row.pop("dead_fraction", None)
    row.pop("loss_recovered")
  text = table.terminal_table(fidelity)
  assert "dead" not in text and "recovered" not in text


def test_markdown_escapes_what_would_break_it(fidelity):
  fidelity["rows"][0]["name"] = "a|b*c\nd"
  lines = table.markdown_table(fidelity).split("\n")
  assert any(line.startswith(r"| a\|b\*c↵d |") for line in lines)


def test_one_row_stays_one_line(fidelity):
  lines = len(table.terminal_table(fidelity).split("\n"))
  fidelity["rows"][0]["name"] = "a\nb\x1b[2J"
  fidelity["model"]["label"] = "gemma\r\n"
  text = table.terminal_table(fidelity)
  assert len(text.split("\n")) == lines
  assert "a↵b‹U+001B›[2J" in text and "\x1b" not in text


def test_a_wrong_result_is_refused():
  with pytest.raises(results.ResultError, match="not a fidelity result"):
    table.terminal_table({"rows": []})

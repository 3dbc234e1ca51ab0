"""Grids of overrides."""

import itertools

import pytest

from launch.sweeps import grid


def test_product_is_that_of_itertools():
  sizes, seeds, sites = (1, 2, 3), (0, 1), ("res.1",)
  found = grid.product(
    grid.axis("a", sizes), grid.axis("b", seeds), grid.axis("c", sites)
  )
  assert [tuple(each.values()) for each in found] == list(
    itertools.product(sizes, seeds, sites)
  )
  assert grid.product() == [{}] and grid.product([{"a": 1}], []) == []


def test_zipped_and_chain():
  one, other = grid.axis("a", (1, 2)), grid.axis("b", (3, 4))
  assert grid.zipped(one, other) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
  assert grid.chain(one, other) == [{"a": 1}, {"a": 2}, {"b": 3}, {"b": 4}]


def test_contradictions_are_named():
  with pytest.raises(ValueError, match="a is both 1 and 2 in one entry"):
    grid.product(grid.axis("a", (1,)), grid.axis("a", (1, 2)))
  with pytest.raises(ValueError, match=r"\[2, 1\] entries: expected equally"):
    grid.zipped(grid.axis("a", (1, 2)), grid.axis("b", (1,)))

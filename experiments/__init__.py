"""The binaries: `python -m experiments.NAME --config=configs/FILE.py`."""

from experiments import _huge_pages

_huge_pages.use_in_binaries()

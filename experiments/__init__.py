"""The binaries: `python -m experiments.NAME --config=configs/FILE.py`."""

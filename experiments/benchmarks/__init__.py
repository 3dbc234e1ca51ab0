"""What `python -m experiments.benchmark NAME` can measure."""

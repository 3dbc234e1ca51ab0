"""Sweeps: each file overrides settings of one config, see docs/sweeps.md."""

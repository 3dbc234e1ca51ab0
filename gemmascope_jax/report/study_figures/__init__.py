"""Figures of the studies: one file each, from result files alone."""

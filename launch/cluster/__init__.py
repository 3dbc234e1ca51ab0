"""Runs on clusters: what is submitted to Slurm, Kubernetes and clouds."""

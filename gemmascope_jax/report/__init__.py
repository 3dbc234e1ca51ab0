"""Figures, tables and a page from result files alone.

    from gemmascope_jax import report

    paths = report.build("runs/x/results", "runs/x/train", "runs/x/report")
    print(report.terminal_table(result))

Nothing here knows a language model or an SAE. matplotlib (the extra `plots`)
is imported when a figure is drawn.
"""

from gemmascope_jax.report.assemble import build, build_training
from gemmascope_jax.report.latent_results import read_latents
from gemmascope_jax.report.results import ResultError, read_fidelity
from gemmascope_jax.report.table import markdown_table, terminal_table
from gemmascope_jax.report.training_metrics import read_metrics

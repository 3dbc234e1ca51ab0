"""Writes the pipeline of a config for Kubernetes (JobSet) or SkyPilot.

  python -m launch.render --template=jobset --config=configs/gemma2_2b.py \\
    --name=gemma-2b --image=REGISTRY/gemmascope_jax:cuda --volume=gemmascope \\
    --accelerator=nvidia-h100-80gb --chips=8 --hosts=2 --model=16 > job.yaml
  kubectl apply -f job.yaml

See launch/README.md for what has to be there before.
"""

from __future__ import annotations

import pathlib
import sys

from absl import app, flags

from launch import arguments
from launch.cluster import templates

_TEMPLATE = flags.DEFINE_enum("template", None, templates.NAMES, "Which.")
_CONFIG = flags.DEFINE_string("config", None, "Config file.", required=True)
_SET = flags.DEFINE_multi_string("set", [], "key=value of the config.")
_OUT = flags.DEFINE_string("out", "-", "File to write; -: print.")
_CLUSTER = (
  flags.DEFINE_string(
    "name", None, "Of the job and its folder.", required=True
  ),
  flags.DEFINE_string("image", "", "JobSet: the container."),
  flags.DEFINE_string("volume", "", "JobSet: claim of a shared volume."),
  flags.DEFINE_string("bucket", "", "SkyPilot: gs://NAME or s3://NAME."),
  flags.DEFINE_string("accelerator", "", "As the cluster calls it."),
  flags.DEFINE_integer("chips", 1, "Accelerators of a machine."),
  flags.DEFINE_integer("hosts", 1, "Machines that work together."),
  flags.DEFINE_string("topology", "", "Of a TPU slice, as 4x4."),
  flags.DEFINE_integer("servers", 1, "Servers of activations."),
  flags.DEFINE_integer("model", 1, "Devices that latents are split over."),
)


def main(argv) -> None:
  """Renders."""
  arguments.require_flags_only(argv)
  try:
    cluster = templates.Cluster(**{flag.name: flag.value for flag in _CLUSTER})
    text = templates.render(_TEMPLATE.value, cluster, _CONFIG.value, _SET.value)
    if _OUT.value != "-":
      pathlib.Path(_OUT.value).write_text(text, encoding="utf-8")
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  if _OUT.value == "-":
    sys.stdout.write(text)


if __name__ == "__main__":
  flags.mark_flag_as_required("template")
  app.run(main)

"""Fills the templates of launch/templates/ for one config and one cluster."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
import shlex
from collections.abc import Sequence

from launch import arguments

NAMES = ("jobset", "skypilot")
_FOLDER = pathlib.Path(__file__).parent.parent / "templates"
_PLACE = re.compile(r"\{\{([\w:]+)\}\}")
# Set by the templates: where all is, and how it is divided and served.
_OWN = ("workdir", "harvest.root", "data.source", "mesh.data", "mesh.model")
_PLAIN = re.compile(r"[\w.:/@-]*")  # needs no quotes in YAML
_DNS = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_PORT = 8476  # of the first process, for JAX
_STORES = {"s3": "s3fs", "gcs": "gcsfs"}  # SkyPilot's word -> fsspec's package


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Where and on what.

  Attributes:
    name: of the job, and of its folder on the volume.
    image: of the container (JobSet).
    volume: claim of a volume that all pods can write (JobSet).
    bucket: for the activations and runs (SkyPilot), as "gs://NAME".
    accelerator: as the cluster calls it: "nvidia-h100-80gb" and
      "tpu-v5-lite-podslice" on GKE, "H100" for SkyPilot.
    chips: accelerators of one machine.
    hosts: machines that harvest, train and evaluate together.
    topology: of a TPU slice, as "4x4"; "" for GPUs.
    servers: of activations.
    model: devices over which latents are split; all others split the batch.
  """

  name: str
  image: str = ""
  volume: str = ""
  bucket: str = ""
  accelerator: str = ""
  chips: int = 1
  hosts: int = 1
  topology: str = ""
  servers: int = 1
  model: int = 1

  def __post_init__(self):
    """Refuses what no cluster would take.

    Raises:
      ValueError: names the flag and what it should be.
    """
    if not _DNS.fullmatch(self.name):
      raise ValueError(
        f"--name={self.name!r}: expected lower-case letters, digits and '-', at"
        " most 40, as it becomes part of host names"
      )
    if not self.accelerator:
      raise ValueError(
        "expected --accelerator, as the cluster calls it: nvidia-h100-80gb or"
        " tpu-v5-lite-podslice on GKE, H100 for SkyPilot"
      )
    for field in ("image", "volume", "accelerator"):
      if not _PLAIN.fullmatch(getattr(self, field)):
        raise ValueError(
          f"--{field}={getattr(self, field)!r}: expected letters, digits and"
          " . : / @ _ - only"
        )
    for field in ("chips", "hosts", "servers", "model"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"--{field}={getattr(self, field)}: expected at least 1"
        )
    if self.devices % self.model:
      raise ValueError(
        f"--model={self.model}: expected a divisor of the {self.devices} devices"
        f" ({self.hosts} hosts with {self.chips} chips)"
      )
    chips = self.topology.split("x") if self.topology else []
    if not all(each.isdigit() for each in chips):
      raise ValueError(f"--topology={self.topology!r}: expected such as 4x4")
    if chips and math.prod(map(int, chips)) != self.devices:
      raise ValueError(
        f"--topology={self.topology} has {math.prod(map(int, chips))} chips, but"
        f" {self.hosts} hosts with {self.chips} each have {self.devices}"
      )

  @property
  def devices(self) -> int:
    """Of all machines that work together."""
    return self.hosts * self.chips

  @property
  def is_tpu(self) -> bool:
    """Whether the accelerator is a TPU."""
    return self.accelerator.startswith("tpu")


def render(
  template: str, cluster: Cluster, config: str, overrides: Sequence[str] = ()
) -> str:
  """The template's text, filled in.

  Args:
    template: of `NAMES`.
    cluster: where and on what.
    config: file, as `--config` takes it, in the image or the checkout.
    overrides: "key=value" of the config.

  Raises:
    ValueError: an unknown template, or something it needs is missing.
  """
  if template not in NAMES:
    raise ValueError(
      f"--template={template!r}: expected one of {', '.join(NAMES)}"
    )
  arguments.require_settings("--set", overrides, _OWN)
  for override in overrides:
    if "\n" in override:
      raise ValueError(f"--set={override!r}: expected one line")
  values = _jobset(cluster) if template == "jobset" else _skypilot(cluster)
  root = "/data/stores"
  if template == "skypilot":
    root = f"{cluster.bucket}/stores"
  common = [f"--config={config}", f"--config.workdir=/data/{cluster.name}"]
  common += [f"--config.harvest.root={root}", "--config.progress=False"]
  common += [f"--config.{override}" for override in overrides]
  values |= {
    "name": cluster.name,
    "common": shlex.join(common),
    "devices": cluster.devices,
    "data": cluster.devices // cluster.model,
    "model": cluster.model,
  }
  text = (_FOLDER / f"{template}.yaml").read_text(encoding="utf-8")
  return _PLACE.sub(lambda place: str(values[place[1]]), text)


def _jobset(cluster: Cluster) -> dict[str, object]:
  for field in ("image", "volume"):
    if not getattr(cluster, field):
      raise ValueError(f"expected --{field} for JobSet; see launch/README.md")
  if cluster.is_tpu != bool(cluster.topology):
    raise ValueError(
      f"--accelerator={cluster.accelerator} --topology={cluster.topology!r}:"
      " expected a topology, such as 4x4, for TPUs, and only for them"
    )
  label = "cloud.google.com/gke-"
  if cluster.is_tpu:
    selector = (
      f"{{{label}tpu-accelerator: {cluster.accelerator},"
      f' {label}tpu-topology: "{cluster.topology}"}}'
    )
    limits = f"{{google.com/tpu: {cluster.chips}}}"
  else:
    selector = f"{{{label}accelerator: {cluster.accelerator}}}"
    limits = f"{{nvidia.com/gpu: {cluster.chips}}}"
  host = lambda job, index: f"{cluster.name}-{job}-0-{index}.{cluster.name}"
  join = {
    # On a TPU slice, GKE tells each process its place.
    f"distributed:{job}": "--distributed=on"
    if cluster.is_tpu and cluster.hosts > 1
    else f"--distributed={host(job, 0)}:{_PORT},{cluster.hosts},$JOB_COMPLETION_INDEX"
    if cluster.hosts > 1
    else "--distributed=off"
    for job in ("harvest", "train", "evaluate")
  }
  servers = [f"{host('serve', n)}:8815" for n in range(cluster.servers)]
  return join | {
    "image": cluster.image,
    "volume": cluster.volume,
    "hosts": cluster.hosts,
    "servers": cluster.servers,
    "node_selector": selector,
    "limits": limits,
    "addresses": ",".join(servers),
  }


def _skypilot(cluster: Cluster) -> dict[str, object]:
  store, _, bucket = cluster.bucket.partition("://")
  store = {"gs": "gcs"}.get(store, store)
  if store not in _STORES or not bucket or "/" in bucket:
    raise ValueError(
      f"--bucket={cluster.bucket!r}: expected gs://NAME or s3://NAME"
    )
  if cluster.is_tpu:
    raise ValueError(
      f"--accelerator={cluster.accelerator}: this pipeline installs JAX for"
      " GPUs; TPUs: JobSet"
    )
  if cluster.hosts > 1 or cluster.servers > 1:
    raise ValueError(
      f"--hosts={cluster.hosts} --servers={cluster.servers}: this pipeline has"
      " one machine a station, since a bucket is no file system that several can"
      " train on; several machines: JobSet or Slurm"
    )
  return {
    "accelerator": cluster.accelerator,
    "chips": cluster.chips,
    "bucket": bucket,
    "store": store,
    "filesystem": _STORES[store],
  }

"""What a store is: for programs, and as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemmascope_jax.data.stores import shards

if TYPE_CHECKING:
  from gemmascope_jax.data.stores.store import Store


def summary(store: Store) -> dict[str, Any]:
  """What a store is, JSON-ready; sizes in bytes."""
  plan, manifest = store.plan, store.manifest
  sites = {}
  for site, width in plan.sites:
    mean, square = store.statistics(site)
    sites[site] = {
      "width": width,
      "bytes": sum(
        shards.rows_form(plan, site, shard).bytes
        for shard in range(plan.shards)
      ),
      "scale": square**0.5,
      "mean_square_norm": square,
      "mean_share": float(mean @ mean) / square,
      "total_variance": store.total_variance(site),
    }
  return {
    "root": str(store.root),
    "format": manifest["format"],
    "fingerprint": store.fingerprint,
    "model": manifest["model"],
    "tokenizer": plan.tokenizer,
    "windows": plan.windows,
    "window": plan.window,
    "documents": manifest["documents"],
    "sources": manifest["sources"],
    "rows": plan.rows,
    "dtype": plan.dtype,
    "shards": plan.shards,
    "rows_per_shard": plan.rows_per_shard,
    "bytes": sum(site["bytes"] for site in sites.values()),
    "token_policy": plan.policy.to_dict(),
    "code": manifest["code"],
    "made_with": manifest["made_with"],
    "config": manifest["config"],
    "sites": sites,
  }


def table(said: dict[str, Any]) -> str:
  """A `summary` for people."""
  model, made = said["model"], said["made_with"]
  lines = [f"activation store {said['root']}"]
  for name, value in (
    ("fingerprint", said["fingerprint"]),
    (
      "model",
      f"{model['label']}, weights {model['weights_hash'][:12]}, computed in"
      f" {model['compute_dtype']}",
    ),
    (
      "text",
      f"{said['windows']:,} windows of {said['window']:,} tokens,"
      f" {said['documents']:,} documents"
      f" ({', '.join(said['sources']) or 'source not named'})",
    ),
    ("tokenizer", said["tokenizer"]),
    ("token policy", said["token_policy"]),
    ("rows", f"{said['rows']:,} a site, {said['dtype']}"),
    (
      "shards",
      f"{said['shards']:,} a site, of {said['rows_per_shard']:,} rows",
    ),
    ("size", _size(said["bytes"])),
    ("code", said["code"]),
    ("made with", f"jax {made['jax']} on {made['device']}"),
  ):
    lines.append(f"  {name:<13} {value}")
  heads = ("site", "width", "size", "C", "mean's share", "total variance")
  rows = [
    (
      name,
      f"{site['width']:,}",
      _size(site["bytes"]),
      f"{site['scale']:.6g}",
      f"{site['mean_share']:.1%}",
      f"{site['total_variance']:.6g}",
    )
    for name, site in said["sites"].items()
  ]
  widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
  for row in (heads, *rows):
    cells = [row[0].ljust(widths[0])]
    cells += [
      cell.rjust(size) for cell, size in zip(row[1:], widths[1:], strict=True)
    ]
    lines.append("  " + "  ".join(cells))
  lines += [
    "  C = sqrt(E||x||^2), which training divides by; the mean's share of",
    "  E||x||^2; total variance = E||x - mean||^2, FVU's denominator",
  ]
  return "\n".join(lines)


def _size(count: int) -> str:
  """Bytes in the unit that fits."""
  for unit in ("B", "KiB", "MiB", "GiB"):
    if count < 1024:
      return f"{count:,.0f} B" if unit == "B" else f"{count:,.2f} {unit}"
    count /= 1024
  return f"{count:,.2f} TiB"

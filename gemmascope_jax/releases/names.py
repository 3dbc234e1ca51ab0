"""The names under which Gemma Scope 1 and 2 were released.

Gemma Scope 1 (Gemma 2):

  google/gemma-scope-{2b,9b,27b}-{pt,it}-{res,mlp,att,transcoders}/
    layer_{L}/width_{W}/average_l0_{N}      or embedding/width_4k/average_l0_{N}

N is the measured mean number of active latents; `canonical` in its place means
the one of a layer and width whose L0 is nearest 100.

Gemma Scope 2 (Gemma 3):

  google/gemma-scope-2-{270m,1b,4b,12b,27b}-{pt,it}/
    {resid_post,mlp_out,attn_out,transcoder}[_all]/
      layer_{L}_width_{W}_l0_{small,medium,big}[_affine][_seed_{S}]
    crosscoder/layer_{L}_{L}_{L}_{L}_width_{W}_l0_{medium,big}
    clt/width_{W}_l0_{medium,big}[_affine]

with W = 4k, 16k, 32k, 65k, 131k, 262k, 524k, 1m for 2^12 .. 2^20. What is named
"262k" is 65,536 latents a layer in a crosscoder of four, and 10,080 a layer in
the CLT of 26 layers: the files tell.

Sites are ours (`gemma.sites`), but for two. `mlp_in_gain.L` is the MLP's input
*with* the norm's gain, which Gemma Scope 2's transcoders read; see `gain`.
`embedding` is a token's row of the embedding matrix, not multiplied by sqrt(D);
see `embedding`.
"""

from __future__ import annotations

import dataclasses
import re

EMBEDDING = "embedding"
GAINED = "mlp_in_gain"
CANONICAL = "canonical"
LEVELS = ("small", "medium", "big")
WIDTHS = {
  "4k": 2**12,
  "16k": 2**14,
  "32k": 2**15,
  "65k": 2**16,
  "131k": 2**17,
  "262k": 2**18,
  "524k": 2**19,
  "1m": 2**20,
}

_SITES = {
  "res": "res",
  "mlp": "mlp",
  "att": "att",
  "transcoders": "mlp_in",
  "resid_post": "res",
  "mlp_out": "mlp",
  "attn_out": "att",
  "transcoder": GAINED,
}
_TUNED = {"pt": False, "it": True}
_REPO_1 = re.compile(
  r"google/gemma-scope-(?P<size>2b|9b|27b)-(?P<tuned>pt|it)"
  r"-(?P<group>res|mlp|att|transcoders)"
)
_FOLDER_1 = re.compile(
  r"(layer_(?P<layer>0|[1-9]\d*)|embedding)"
  r"/width_(?P<width>\d+[km])"
  r"/(average_l0_(?P<l0>\d+)|canonical)"
)
_REPO_2 = re.compile(
  r"google/gemma-scope-2-(?P<size>270m|1b|4b|12b|27b)-(?P<tuned>pt|it)"
)
_FOLDER_2 = re.compile(
  r"(?P<group>(resid_post|mlp_out|attn_out|transcoder)(_all)?|crosscoder|clt)/"
  r"(layer_(?P<layers>\d+(_\d+)*)_)?"
  r"width_(?P<width>\d+[km])_l0_(?P<l0>small|medium|big)"
  r"(?P<affine>_affine)?(_seed_(?P<seed>\d+))?"
)
_NEURONPEDIA = re.compile(
  r"gemma-(?P<family>2|3)-(?P<size>\d+[mb])(?P<tuned>-it)?"
  r"/(?P<layer>\d+)-gemmascope(?P<scope>-2)?"
  r"-(?P<group>res|mlp|att|transcoder)-(?P<width>\d+[km])(__l0-(?P<l0>\d+))?"
  r"(/(?P<latent>\d+))?/?$"
)


@dataclasses.dataclass(frozen=True)
class Name:
  """One released SAE, transcoder, crosscoder or cross-layer transcoder.

  Attributes:
    scope: 1 or 2, of Gemma Scope.
    size: of the model, such as "2b".
    tuned: whether the model is instruction-tuned.
    group: "res", "mlp", "att", "transcoders"; of Gemma Scope 2 the folder.
    layers: () of an embedding SAE or a CLT; several of a crosscoder.
    width: a key of `WIDTHS`.
    l0: measured, of Gemma Scope 1, or "canonical"; one of `LEVELS`.
    affine: whether it has an affine skip connection.
    seed: of a further seed; None: the first.
  """

  scope: int
  size: str
  tuned: bool
  group: str
  layers: tuple[int, ...]
  width: str
  l0: int | str
  affine: bool = False
  seed: int | None = None

  @property
  def repo(self) -> str:
    """Such as "google/gemma-scope-2b-pt-res"."""
    tuned = "it" if self.tuned else "pt"
    if self.scope == 1:
      return f"google/gemma-scope-{self.size}-{tuned}-{self.group}"
    return f"google/gemma-scope-2-{self.size}-{tuned}"

  @property
  def folder(self) -> str:
    """Such as "layer_20/width_16k/average_l0_71"."""
    if self.scope == 1:
      place = f"layer_{self.layers[0]}" if self.layers else EMBEDDING
      l0 = self.l0 if self.l0 == CANONICAL else f"average_l0_{self.l0}"
      return f"{place}/width_{self.width}/{l0}"
    layers = "".join(f"_{layer}" for layer in self.layers)
    return (
      f"{self.group}/{f'layer{layers}_' if layers else ''}width_{self.width}"
      f"_l0_{self.l0}{'_affine' if self.affine else ''}"
      f"{'' if self.seed is None else f'_seed_{self.seed}'}"
    )

  def __str__(self) -> str:
    return f"{self.repo}/{self.folder}"

  @property
  def model(self) -> str:
    """The language model's preset, such as "gemma-2-2b"."""
    family = {1: "gemma-2", 2: "gemma-3"}[self.scope]
    return f"{family}-{self.size}{'-it' if self.tuned else ''}"

  @property
  def kind(self) -> str:
    """One of "sae", "transcoder", "crosscoder" and "clt"."""
    if self.group in ("crosscoder", "clt"):
      return self.group
    return "transcoder" if self.group.startswith("transcoder") else "sae"

  @property
  def site(self) -> str | None:
    """Where it reads; None for a CLT, which reads every layer."""
    if self.kind == "crosscoder":
      return "+".join(f"res.{layer}" for layer in self.layers)
    if self.kind == "clt":
      return None
    if not self.layers:
      return EMBEDDING
    return f"{_SITES[self.group.removesuffix('_all')]}.{self.layers[0]}"

  @property
  def target_site(self) -> str | None:
    """Where a transcoder writes; else None."""
    if self.kind != "transcoder":
      return None
    return f"mlp.{self.layers[0]}"


def parse(text: str) -> Name:
  """Reads a name.

  Args:
    text: such as "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
      or "google/gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_medium".

  Returns:
    The name; `str` of it is `text`.

  Raises:
    ValueError: not a name of a release; says which part is not.
  """
  owner, _, rest = text.partition("/")
  repo, _, folder = rest.partition("/")
  repo = f"{owner}/{repo}"
  if found := _REPO_2.fullmatch(repo):
    return _parse_2(text, found, folder)
  if found := _REPO_1.fullmatch(repo):
    return _parse_1(text, found, folder)
  raise ValueError(
    f"{text!r}: {repo!r} is no repository of Gemma Scope; expected"
    " google/gemma-scope-SIZE-pt-res (or -mlp, -att, -transcoders; it for pt)"
    " or google/gemma-scope-2-SIZE-pt"
  )


def is_repo(text: str) -> bool:
  """Whether it is the id of one of Gemma Scope's repositories."""
  return bool(_REPO_1.fullmatch(text) or _REPO_2.fullmatch(text))


def _parse_1(text: str, repo: re.Match, folder: str) -> Name:
  found = _FOLDER_1.fullmatch(folder)
  if found is None or found["width"] not in WIDTHS:
    raise ValueError(
      f"{text!r}: expected layer_L/width_W/average_l0_N (or /canonical) after"
      f" the repository, with W one of {', '.join(WIDTHS)}"
    )
  layer, l0 = found["layer"], found["l0"]
  return Name(
    scope=1,
    size=repo["size"],
    tuned=_TUNED[repo["tuned"]],
    group=repo["group"],
    layers=() if layer is None else (int(layer),),
    width=found["width"],
    l0=CANONICAL if l0 is None else int(l0),
  )


def _parse_2(text: str, repo: re.Match, folder: str) -> Name:
  found = _FOLDER_2.fullmatch(folder)
  layers = ()
  if found and found["layers"]:
    layers = tuple(int(layer) for layer in found["layers"].split("_"))
  expected = {"clt": 0, "crosscoder": len(layers) or 4}
  if (
    found is None
    or found["width"] not in WIDTHS
    or len(layers) != expected.get(found["group"], 1)
  ):
    raise ValueError(
      f"{text!r}: expected GROUP/layer_L_width_W_l0_LEVEL[_affine][_seed_S]"
      " after the repository (several layers for crosscoder, none for clt),"
      f" with W one of {', '.join(WIDTHS)} and LEVEL one of {', '.join(LEVELS)}"
    )
  return Name(
    scope=2,
    size=repo["size"],
    tuned=_TUNED[repo["tuned"]],
    group=found["group"],
    layers=layers,
    width=found["width"],
    l0=found["l0"],
    affine=found["affine"] is not None,
    seed=None if found["seed"] is None else int(found["seed"]),
  )


def in_path(path: str) -> Name | None:
  """The release that a local file or folder is a copy of, if its path tells.

  Args:
    path: with the repository's name and, below it, the folder's: as a clone has
      them, or the Hub's cache.
  """
  parts = path.replace("models--google--", "google/").split("/")
  for place, part in enumerate(parts):
    repo, below = f"google/{part}", parts[place + 1 :]
    if not is_repo(repo):
      continue
    if below[:1] == ["snapshots"]:  # of the Hub's cache, then the commit
      below = below[2:]
    for count in (3, 2):
      try:
        return parse("/".join([repo, *below[:count]]))
      except ValueError:
        continue
  return None


def neuronpedia(name: Name, latent: int | None = None) -> str | None:
  """Neuronpedia's id of an SAE, or of one of its latents.

  Not every SAE is there. Of Gemma Scope 1 the canonical ones are (with `l0`
  "canonical" here: `catalogue.is_canonical` tells), and some others, as
  "...__l0-N". Of Gemma Scope 2, `resid_post` at medium L0 and `transcoder_all`
  at small L0 with an affine skip.

  Args:
    name: of the release.
    latent: its number; None: of the SAE.

  Returns:
    Such as "gemma-2-2b/20-gemmascope-res-16k/1234", which stands in the
    address of a page; None if SAEs of this kind are not there.
  """
  if name.scope == 1:
    if not name.layers:
      return None
    group = "transcoder" if name.group == "transcoders" else name.group
    l0 = "" if name.l0 == CANONICAL else f"__l0-{name.l0}"
    source = f"{name.layers[0]}-gemmascope-{group}-{name.width}{l0}"
  else:
    shown = {
      ("resid_post", "medium", False): "res",
      ("transcoder_all", "small", True): "transcoder",
    }
    group = shown.get((name.group, name.l0, name.affine))
    if group is None or name.seed is not None:
      return None
    source = f"{name.layers[0]}-gemmascope-2-{group}-{name.width}"
  return f"{name.model}/{source}{'' if latent is None else f'/{latent}'}"


def from_neuronpedia(text: str) -> tuple[Name, int | None]:
  """The inverse of `neuronpedia`.

  Args:
    text: an id, or the address of a page that ends with one.

  Returns:
    The release, canonical where the id names no L0, and the latent's number.

  Raises:
    ValueError: not an id of Gemma Scope on Neuronpedia.
  """
  found = _NEURONPEDIA.search(text)
  if found is None:
    raise ValueError(
      f"{text!r} is no id of Gemma Scope on Neuronpedia; expected such as"
      " 'gemma-2-2b/20-gemmascope-res-16k' and maybe '/LATENT'"
    )
  second = found["scope"] is not None
  group, l0 = found["group"], found["l0"]
  if second:
    group = {"res": "resid_post", "transcoder": "transcoder_all"}.get(group)
    level = {"resid_post": "medium", "transcoder_all": "small"}.get(group)
  elif group == "transcoder":
    group = "transcoders"
  if group is None or second != (found["family"] == "3") or (second and l0):
    raise ValueError(f"{text!r}: there is no such SAE of Gemma Scope")
  name = Name(
    scope=2 if second else 1,
    size=found["size"],
    tuned=found["tuned"] is not None,
    group=group,
    layers=(int(found["layer"]),),
    width=found["width"],
    l0=level if second else CANONICAL if l0 is None else int(l0),
    affine=group == "transcoder_all",
  )
  latent = found["latent"]
  return name, None if latent is None else int(latent)

"""Other people's libraries as oracles: run by their interpreter, not ours.

python tests/releases/peers.py save FOLDER    # SAEs of each kind, as they save
python tests/releases/peers.py load FOLDER    # what we saved, as they load it

`save` writes a folder of each SAE, and what the library itself computes with
it, `outputs.npz`: x [rows, D], latents [rows, M], y [rows, E]. It made
`peers_files.zip`. `load` reads `requests.json`, a list of {"library", "path",
"x", "out"}, and writes such outputs to "out".

It needs torch and, of SAELens 6, dictionary_learning and circuit-tracer, those
whose SAEs are asked for; what these import for other purposes (nnsight, wandb)
it does not need.
"""

import importlib
import importlib.util
import json
import pathlib
import sys
import types

import numpy as np
import torch

D, E, M, ROWS, K = 8, 5, 24, 32, 4
LIBRARIES = {
  "saelens": "sae_lens",
  "dictionary_learning": "dictionary_learning",
  "circuit_tracer": "circuit_tracer",
}


def _randomise(module, seed):
  """Every parameter random, with rows of the decoder of other lengths than 1."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, value in module.named_parameters():
      value.normal_(0, 0.7, generator=generator)
      if name.endswith("threshold") and value.ndim:
        value.abs_()
      if name == "log_threshold":
        value.mul_(0.3)


def _outputs(module, x):
  x = torch.from_numpy(x)
  with torch.no_grad():
    latents = module.encode(x.clone())
    return latents.numpy(), module(x.clone()).numpy()


def _inputs():
  return np.random.default_rng(0).normal(size=(ROWS, D)).astype(np.float32)


def _write(folder, module, runs=None):
  x = _inputs()
  latents, y = _outputs(module if runs is None else runs, x)
  assert 0.02 < (latents > 0).mean() < 0.98, folder
  np.savez_compressed(folder / "outputs.npz", x=x, latents=latents, y=y)


def _save_saelens(root):
  import sae_lens

  about = {"dtype": "float32", "device": "cpu", "d_in": D, "d_sae": M}
  topk = {"k": K, "rescale_acts_by_decoder_norm": True}
  writes = {"d_out": E, "apply_b_dec_to_input": False}
  kinds = {
    "standard": ("StandardSAE", {}),
    "standard_no_pre_bias": ("StandardSAE", {"apply_b_dec_to_input": False}),
    "jumprelu": ("JumpReLUSAE", {"apply_b_dec_to_input": True}),
    "topk": ("TopKSAE", topk | {"rescale_acts_by_decoder_norm": False}),
    "topk_rescaled": ("TopKSAE", topk),
    "gated": ("GatedSAE", {}),
    "transcoder": ("Transcoder", writes),
    "skip_transcoder": ("SkipTranscoder", writes),
    "jumprelu_transcoder": ("JumpReLUTranscoder", writes),
    "jumprelu_skip_transcoder": ("JumpReLUSkipTranscoder", writes),
    "training_jumprelu": ("JumpReLUTrainingSAE", {}),
    "training_gated": ("GatedTrainingSAE", {}),
    "training_batchtopk": ("BatchTopKTrainingSAE", topk),
    "training_matryoshka": (
      "MatryoshkaBatchTopKTrainingSAE",
      topk | {"matryoshka_widths": [6, M]},
    ),
  }
  for seed, (name, (kind, more)) in enumerate(kinds.items()):
    config = getattr(sae_lens, f"{kind}Config")(**(about | more))
    config.metadata.model_name = "somebody/tiny"
    config.metadata.hook_name = "blocks.3.hook_resid_post"
    module = getattr(sae_lens, kind)(config)
    _randomise(module, seed)
    runs = module
    if "batchtopk" in kind.lower():
      module.topk_threshold.fill_(0.8)
      # While it trains what a row keeps depends on its batch; afterwards it is
      # the JumpReLU that the library makes of it.
      path = root / f"saelens_{name}_inference"
      module.save_inference_model(path)
      runs = sae_lens.SAE.load_from_disk(path, device="cpu")
      _write(path, runs)
    module.save_model(root / f"saelens_{name}")
    _write(root / f"saelens_{name}", module, runs)


def _dictionary_learning():
  """The package without its `__init__`, which imports nnsight and more."""
  if "dictionary_learning" not in sys.modules:
    spec = importlib.util.find_spec("dictionary_learning")
    package = types.ModuleType("dictionary_learning")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["dictionary_learning"] = package
  part = lambda name: importlib.import_module(f"dictionary_learning.{name}")
  found = vars(part("dictionary")) | vars(part("trainers.top_k"))
  found |= vars(part("trainers.batch_top_k"))
  return found | vars(part("trainers.matryoshka_batch_top_k"))


def _save_dictionary_learning(root):
  classes = _dictionary_learning()
  kinds = {
    "AutoEncoder": {},
    "AutoEncoderNew": {},
    "GatedAutoEncoder": {},
    "JumpReluAutoEncoder": {},
    "AutoEncoderTopK": {"k": K},
    "BatchTopKSAE": {"k": K},
    "MatryoshkaBatchTopKSAE": {"k": K, "group_sizes": [6, M - 6]},
  }
  for seed, (name, more) in enumerate(kinds.items()):
    module = classes[name](D, M, **more)
    _randomise(module, 100 + seed)
    if "Batch" in name:
      module.threshold.fill_(0.8)
    folder = root / f"dictionary_learning_{name}"
    folder.mkdir()
    torch.save(module.state_dict(), folder / "ae.pt")
    trainer = {"dict_class": name, "layer": 3, "lm_name": "somebody/tiny"}
    trainer |= {"submodule_name": "resid_post_layer_3"} | more
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    _write(folder, _load_dictionary_learning(folder))


def _load_dictionary_learning(path):
  about = json.loads((path / "config.json").read_text())["trainer"]
  more = {} if about.get("k") is None else {"k": about["k"]}
  kind = _dictionary_learning()[about["dict_class"]]
  return kind.from_pretrained(str(path / "ae.pt"), **more)


def _save_circuit_tracer(root):
  import yaml
  from circuit_tracer.transcoder import activation_functions
  from circuit_tracer.transcoder import single_layer_transcoder as ct

  folder = root / "circuit_tracer"
  about = {
    "model_kind": "transcoder_set",
    "model_name": "somebody/tiny",
    "feature_input_hook": "ln2.hook_normalized",
    "feature_output_hook": "hook_mlp_out",
    "scan": "somebody/transcoders",
  }
  folder.mkdir()
  (folder / "config.yaml").write_text(yaml.safe_dump(about))
  for layer in range(3):
    relu = torch.nn.functional.relu
    if layer:
      relu = activation_functions.JumpReLU(torch.zeros(M), 0.1)
    module = ct.SingleLayerTranscoder(
      D, M, relu, layer, skip_connection=layer == 2, dtype=torch.float32
    )
    _randomise(module, 200 + layer)
    module.to_safetensors(folder / f"layer_{layer}.safetensors")
    where = root / f"circuit_tracer_{layer}"
    where.mkdir()
    _write(where, module)


def _load_circuit_tracer(path):
  """A folder with transcoders of layers 0, 1, ...: all of them, in order."""
  import yaml
  from circuit_tracer.transcoder import single_layer_transcoder as ct

  about = yaml.safe_load((path / "config.yaml").read_text())
  assert about.pop("model_kind") == "transcoder_set"
  del about["model_name"]
  count = len(list(path.glob("layer_*.safetensors")))
  files = [str(path / f"layer_{layer}.safetensors") for layer in range(count)]
  return ct.load_transcoder_set(dict(enumerate(files)), **about)


def _load_circuit_tracer_npz(path):
  from circuit_tracer.transcoder import single_layer_transcoder as ct

  return ct.load_gemma_scope_transcoder(str(path), 0)


def _load_circuit_tracer_2(path):
  from circuit_tracer.transcoder import single_layer_transcoder as ct

  return ct.load_gemma_scope_2_transcoder(str(path), 0)


def _load_saelens(path):
  import sae_lens

  return sae_lens.SAE.load_from_disk(path, device="cpu")


def _load_saelens_gemma(path, loader, repo):
  """Through its loaders of Google's repositories; only the download is local.

  They take widths from the names, so these are put right.
  """
  import sae_lens
  from sae_lens.loading import pretrained_sae_loaders as loaders
  from safetensors.torch import load_file

  loaders.hf_hub_download = lambda repo_id, filename, subfolder="", **_: str(
    path / pathlib.Path(filename).name
  )
  loaders.get_safetensors_tensor_shapes = lambda repo_id, filename, **_: {
    k: list(v.shape) for k, v in load_file(path / "params.safetensors").items()
  }
  config, arrays, _ = getattr(loaders, loader)(repo, str(path), device="cpu")
  config["d_in"], config["d_sae"] = arrays["W_enc"].shape
  given = {k: v for k, v in config.items() if v is not None}
  about = {"reshape_activations": "none", "normalize_activations": "none"}
  module = sae_lens.SAE.from_dict(about | given)
  module.load_state_dict(arrays)
  return module


def _load_saelens_npz(path):
  return _load_saelens_gemma(
    path, "gemma_2_sae_huggingface_loader", "google/gemma-scope-2b-pt-res"
  )


def _load_saelens_2(path):
  return _load_saelens_gemma(
    path, "gemma_3_sae_huggingface_loader", "google/gemma-scope-2-1b-pt"
  )


def _all_layers(modules, x):
  with torch.no_grad():
    latents = torch.stack([module.encode(x) for module in modules])
    y = torch.stack([module(x) for module in modules])
  return latents.numpy(), y.numpy()


def _load(folder):
  for one in json.loads((folder / "requests.json").read_text()):
    module = globals()[f"_load_{one['library']}"](folder / one["path"])
    x = np.load(folder / one["x"])
    if one.get("supports"):  # of many rows only which latents are active
      with torch.no_grad():
        active = [
          np.packbits((module.encode(torch.from_numpy(rows)) > 0).numpy())
          for rows in np.array_split(x, 20)
        ]
      np.save(folder / one["out"], np.concatenate(active))
      continue
    if one["library"] == "circuit_tracer":
      latents, y = _all_layers(module, torch.from_numpy(x))
    else:
      latents, y = _outputs(module, x)
    np.savez(folder / one["out"], latents=latents, y=y)


def _has(library):
  return importlib.util.find_spec(LIBRARIES[library]) is not None


if __name__ == "__main__":
  command, where = sys.argv[1], pathlib.Path(sys.argv[2])
  where.mkdir(exist_ok=True)
  if command == "have":
    print(json.dumps([each for each in LIBRARIES if _has(each)]))
  elif command == "save":
    _save_saelens(where)
    _save_dictionary_learning(where)
    _save_circuit_tracer(where)
  else:
    _load(where)

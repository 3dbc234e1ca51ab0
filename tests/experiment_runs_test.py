"""Several runs in one config, and the studies of all that they leave."""

import json
import pathlib

import jax
import numpy as np
import pytest

import gemmascope_jax as gs
from gemmascope_jax import experiment, finetune
from gemmascope_jax.experiment import runs, settings
from gemmascope_jax.finetune import delta
from gemmascope_jax.report import studies as study_report
from tests import experiment_test
from tests.digests import digests
from tests.gemma import tiny_files

text = experiment_test.text
TRANSCODER = {
  "train.site": "mlp_in.0",
  "train.target_site": "mlp.0",
  "recipe.encoder_init": "he_uniform",
  "recipe.pre_encoder_bias": False,
  "recipe.normalise": "each",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("model")
  tiny_files.write_tokenizer(folder, chat=True)
  tensors = tiny_files.hf_tensors(tiny_files.random_params())
  fields = tiny_files.hf_fields() | {"max_position_embeddings": 64}
  return tiny_files.write_hf(folder, tensors, fields)


@pytest.fixture(scope="module")
def tuned(model, tmp_path_factory):
  """A fine-tune that changed the first block."""
  folder = tmp_path_factory.mktemp("tuned")
  lm = gs.gemma.load(model)
  rng = np.random.default_rng(0)
  block = jax.tree.map(
    lambda leaf: np.asarray(leaf) + rng.normal(0, 0.02, leaf.shape),
    lm.params["layer_0"],
  )
  about = {"name": "our tiny fine-tune"}
  delta.write(folder / finetune.FILE, lm, {"layer_0": block}, about, "float32")
  return folder


@pytest.fixture(scope="module")
def pile(tmp_path_factory):
  """Two subsets: one of a few words over and over, one of all."""
  rng = np.random.default_rng(0)
  lines = []
  for number in range(400):
    few = number % 2
    words = rng.integers(4, 20, 60) if few else rng.integers(4, 310, 60)
    name = "DM Mathematics" if few else "EuroParl"
    lines.append(
      {
        "text": " ".join(f"w{i}" for i in words),
        "meta": {"pile_set_name": name},
      }
    )
  path = tmp_path_factory.mktemp("pile") / "pile.jsonl"
  path.write_text("\n".join(map(json.dumps, lines)))
  return path


@pytest.fixture(scope="module")
def config(model, text, tuned, pile, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("zoo")
  config = experiment_test._config(model, text, workdir)
  config.data.window = 20
  config.harvest.sites = ("res.1", "mlp.0", "mlp_in.0")
  config.runs = (
    {"name": "res"},
    {"name": "mlp", "train.site": "mlp.0"},
    {"name": "transcoder"} | TRANSCODER,
    {"name": "skip", "recipe.skip": True} | TRANSCODER,
    {
      "name": "tuned",
      "lm.delta": str(tuned),
      "data.chat": True,
      "harvest.sites": ("res.1",),
    },
  )
  prompts = workdir / "prompts.txt"
  prompts.write_text("\n".join(f"w{i} w{i + 1} w{i + 2}" for i in range(5, 15)))
  config.studies.subset_source = f"file:{pile}"
  config.studies.subset_sequences = 6
  config.studies.instruct.delta = str(tuned)
  config.studies.instruct.prompts = f"file:{prompts}"
  config.studies.instruct.prompt_count = 8
  config.studies.instruct.per_prompt = 1
  config.studies.instruct.new_tokens = 6
  return config


@pytest.fixture(scope="module")
def found(config):
  experiment.harvest(config)
  experiment.train(config)
  return experiment.study(config, ["all"])


def test_runs_with_the_same_activations_share_a_store(config, found):
  workdir = pathlib.Path(config.workdir)
  every = runs.runs(config)
  stores = {
    name: experiment.harvest(one).root.resolve() for name, one in every.items()
  }
  own = next((workdir / "tuned" / "store").iterdir()).resolve()
  shared = next((workdir / "store").iterdir()).resolve()
  assert stores.pop("tuned") == own
  assert set(stores.values()) == {shared}
  for name in every:
    assert len(list((workdir / name / "train" / "saes").iterdir())) == 2


def test_every_study_has_its_saes(config, found):
  # All of the ladder's SAEs have one width.
  assert set(found["left_out"]) == {"width"}
  results = found["results"]
  names = {sae["name"] for sae in results["fidelity"]["saes"]}
  assert {name.split("/")[0] for name in names} == {
    "res",
    "mlp",
    "transcoder",
    "skip",
  }
  kinds = [row["kind"] for row in results["transcoders"]["saes"]]
  assert kinds == ["sae"] * 2 + ["transcoder"] * 2 + ["skip transcoder"] * 2
  page = found["page"].read_text()
  for name in results:
    assert f'<section id="{name}">' in page
    assert results[name]["findings"], name


def test_the_instruct_study_compares_both_models_saes(config, found, tuned):
  result = found["results"]["instruct"]
  assert result["model"]["label"].endswith("our tiny fine-tune")
  kinds = [(row["trained_on"], row["rescaled"]) for row in result["saes"]]
  assert kinds.count(("base", False)) == kinds.count(("base", True)) == 2
  assert kinds.count(("tuned", False)) == 2
  assert len(result["differences"]) == len(result["rescaling"]) == 2
  (norm,) = result["norms"]
  lm = gs.gemma.load(config.lm.source)
  rolled = next(pathlib.Path(config.workdir, "rollouts").glob("*.npz"))
  arrays = np.load(rolled)
  counted = np.isin(arrays["roles"], (2, 3))
  counted &= ~np.isin(arrays["tokens"], (0, 1, 2))
  assert result["tokens"]["counted"] == counted.sum()
  squares = []
  for one in (lm, finetune.apply(lm, tuned)):
    out = gs.gemma.forward(
      one.config,
      one.params,
      arrays["tokens"],
      taps=("res.1",),
      mask=arrays["tokens"] != 0,
    )
    x = np.asarray(out.acts["res.1"], np.float64)[counted]
    squares.append(np.square(x).sum())
  expected = np.sqrt(squares[0] / squares[1])
  assert norm["base_over_tuned"] == pytest.approx(expected, rel=1e-5)
  for row in result["saes"]:
    assert set(row["parts"]) == {"rollout", "prompt"}
    assert row["parts"]["rollout"]["delta_loss"]["n"] == 8


def test_subsets_are_named_and_counted(config, found):
  result = found["results"]["subsets"]
  texts = {each["name"]: each for each in result["subsets"]}
  assert texts["dm_mathematics"]["sequences"] == 6
  assert "sequences" not in texts["github"]
  for row in result["saes"]:
    assert set(row["subsets"]) == {"dm_mathematics", "europarl"}
  assert {row["site"] for row in result["saes"]} == {"res.1", "mlp.0"}


def test_the_page_is_made_of_the_results_alone(config, found, tmp_path):
  folder = pathlib.Path(config.workdir) / "results/studies"
  study_report.build(folder, tmp_path, experiment.STUDIES)
  assert digests(tmp_path) == digests(found["page"].parent)


def test_saes_of_both_models_can_be_named(config, found, tmp_path):
  one = config.copy_and_resolve_references()
  one.runs, one.workdir = (), str(tmp_path)
  saes = pathlib.Path(config.workdir)
  given = [
    f"{name}:res.1={sorted((saes / name / 'train/saes').iterdir())[0]}"
    for name in ("res", "tuned")
  ]
  result = experiment.study(one, ["instruct"], given)["results"]["instruct"]
  known = {(row["trained_on"], row["rescaled"]) for row in result["saes"]}
  assert known == {("base", False), ("base", True), ("tuned", False)}


@pytest.mark.parametrize(
  ("given", "says"),
  [
    ("res", "expected settings, as"),
    ({"train.site": "res.1"}, 'expected a "name" of letters'),
    ({"name": "../up"}, 'expected a "name" of letters'),
    ({"name": "store"}, "the name is taken"),
    (
      {"name": "a", "train.sight": 1},
      "'train.sight'; did you mean 'train.site'",
    ),
    ({"name": "a", "train": 1}, "no setting 'train'"),
    ({"name": "a", "workdir": "b"}, "can't set runs or workdir"),
    ({"name": "a", "train.site": 3}, "could not|Could not|casted"),
  ],
)
def test_runs_that_make_no_sense_are_refused(config, given, says):
  one = config.copy_and_resolve_references()
  one.runs = (given,)
  with pytest.raises(ValueError, match=says):
    runs.runs(one)


def test_a_wrong_run_is_refused_before_anything_is_harvested(config, tmp_path):
  one = config.copy_and_resolve_references()
  one.workdir = str(tmp_path / "new")
  one.runs = (*one.runs, {"name": "late", "train.site": "res.2"})
  with pytest.raises(ValueError, match="harvest res.2 too"):
    experiment.harvest(one)
  assert not (tmp_path / "new").exists()


def test_one_table_of_runs_is_no_table(config):
  with pytest.raises(ValueError, match="names 5 runs"):
    experiment.evaluate(config)


def test_explainers_are_checked(config, found):
  one = config.copy_and_resolve_references()
  for change, says in (
    ({"explainer": "me"}, "studies.explainer is 'me'"),
    ({"explainer": "lm"}, "expected both or neither"),
    ({"explainer": "chat", "simulator": "lm"}, "chat_url is ''"),
  ):
    one.studies.update(config.studies)
    one.studies.update(change)
    with pytest.raises(ValueError, match=says):
      experiment.study(one, ["interpretability"])
  assert settings.workdir(one).exists()


def test_an_sae_is_fine_tuned_on_rollouts(config, found, tuned, tmp_path):
  (said,) = pathlib.Path(config.workdir, "rollouts").glob("*.json")
  base = sorted(pathlib.Path(config.workdir, "res/train/saes").iterdir())[0]
  one = config.copy_and_resolve_references()
  one.runs, one.workdir, one.lm.delta = (), str(tmp_path), str(tuned)
  one.harvest.sites, one.data.rollouts = ("res.1",), str(said)
  with pytest.raises(ValueError, match="expected data.chat"):
    experiment.harvest(one)
  one.data.chat = True
  counted = found["results"]["instruct"]["tokens"]["counted"]
  one.harvest.rows = counted + 1
  with pytest.raises(ValueError, match="ask for fewer rows"):
    experiment.harvest(one)
  one.harvest.rows = counted
  store = experiment.harvest(one)
  tokens = np.load(said.with_suffix(".npz"))["tokens"]
  assert set(np.asarray(store.tokens).ravel()) <= set(tokens.ravel()) | {0}
  one.train.tokens, one.train.sparsity_coefficients = 640, (1e-3,)
  one.recipe.width = gs.sae.load(base).width
  one.recipe.start = str(base)
  (folder,) = experiment.train(one)
  start, end = (gs.sae.load(each) for each in (base, folder))
  before = gs.sae.load(folder.parent.parent / "initial" / folder.name)
  for name, value in vars(start.params).items():
    if value is not None:
      same = vars(before.params)[name]
      size = np.abs(value).max()
      np.testing.assert_allclose(same, value, rtol=1e-4, atol=1e-5 * size)
  assert np.abs(end.params.w_enc - start.params.w_enc).max() > 1e-3
  assert end.config.model.endswith("our tiny fine-tune")
  assert "continued" in end.config.details()["name"]


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"width": 48}, "expected a JumpReLU SAE with"),
    ({"family": "topk", "k": 3}, "only JumpReLU SAEs can be gone on with"),
  ],
)
def test_what_cannot_be_gone_on_with_is_refused(
  config, found, tmp_path, change, says
):
  base = sorted(pathlib.Path(config.workdir, "res/train/saes").iterdir())[0]
  one = config.copy_and_resolve_references()
  one.runs, one.workdir = (), str(tmp_path)
  one.data.source = str(next(pathlib.Path(config.workdir, "store").iterdir()))
  one.train.sparsity_coefficients = ()
  one.train.members = ({"start": str(base)} | change,)
  with pytest.raises(ValueError, match=says):
    experiment.train(one)


def test_an_sae_of_another_model_is_refused(config, found, tmp_path):
  sae = sorted(pathlib.Path(config.workdir, "tuned/train/saes").iterdir())[0]
  one = config.copy_and_resolve_references()
  one.runs, one.workdir = (), str(tmp_path)
  one.studies.instruct.delta = ""
  with pytest.raises(ValueError, match="load that model"):
    experiment.study(one, ["fidelity"], [str(sae)])

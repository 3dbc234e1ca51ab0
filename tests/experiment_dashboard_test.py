"""Pages from a config: a planted latent is on them, and what is refused."""

import contextlib
import shutil

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import dashboard as binary
from gemmascope_jax import artifacts, experiment, gemma
from gemmascope_jax import sae as saes
from gemmascope_jax.dashboards import site
from gemmascope_jax.experiment import activations, dashboard
from gemmascope_jax.releases import gemma_scope
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig, weights_hash
from gemmascope_jax.studies.latents import DeadSAEError
from tests import experiment_test

model, text = experiment_test.model, experiment_test.text
_PARIS, _PLANTED = "w7", 5  # a word of the tiny tokenizer, and its latent


@pytest.fixture(scope="module")
def config(model, text, tmp_path_factory):
  config = experiment_test._config(
    model, text, tmp_path_factory.mktemp("boards")
  )
  config.harvest.sites = ("res.1",)
  experiment.harvest(config)
  return config


@pytest.fixture(scope="module")
def lm(config):
  return gemma.load(config.lm.source)


@pytest.fixture(scope="module")
def planted(config, lm, tmp_path_factory):
  """Latent 5 reads the word Paris, and writes towards saying it."""
  store = activations.open_rows(config)
  (word,) = lm.tokenizer.encode(_PARIS)
  index = np.asarray(store.index(0, store.rows))
  is_paris = store.tokens[index[:, 0], index[:, 1]] == word
  x = np.asarray(store.read("res.1", 0, store.rows), np.float64)
  x, mean = x - x.mean(axis=0), x.mean(axis=0)
  spread = x.T @ x / len(x)
  reads = np.linalg.solve(
    spread + 1e-3 * np.trace(spread) / len(spread) * np.eye(len(spread)),
    x[is_paris].mean(axis=0),
  )
  scores = x @ reads
  threshold = (scores[is_paris].min() + scores[~is_paris].max()) / 2
  assert is_paris.sum() > 20 and scores[is_paris].min() > threshold
  rng = np.random.default_rng(0)
  w_dec = rng.normal(size=(12, x.shape[1])).astype(np.float32)
  w_enc = w_dec.T.copy()
  embedding = np.asarray(lm.params["embedder"]["embedding"])
  w_dec[_PLANTED] = embedding[word] / np.linalg.norm(embedding[word])
  w_enc[:, _PLANTED] = reads
  thresholds = np.full(12, x.std() * np.sqrt(x.shape[1]), np.float32)
  thresholds[_PLANTED] = threshold
  thresholds[9] = 1e9
  found = SAE(
    Params(
      w_enc=w_enc,
      b_enc=(-mean @ w_enc).astype(np.float32),
      w_dec=w_dec,
      b_dec=mean.astype(np.float32),
      threshold=thresholds,
    ),
    SAEConfig(site="res.1", token_policy=store.policy),
  )
  folder = tmp_path_factory.mktemp("planted") / "sae"
  gemma_scope.save(found, folder)
  return folder


@pytest.fixture(scope="module")
def pages(config, planted, tmp_path_factory):
  out = tmp_path_factory.mktemp("out") / "pages"
  said = {
    "study": "interpretability",
    "hashes": {"mine": weights_hash(saes.load(planted))},
    "saes": [
      {
        "name": "mine",
        "latents": [
          {
            "latent": _PLANTED,
            "explanation": "the city of Paris",
            "score": {"mean": 0.9},
          },
          {"latent": 1, "explanation": None, "score": None},
        ],
      }
    ],
  }
  artifacts.write_json(out.parent / "explained.json", said)
  dashboard.build(
    config,
    str(planted),
    out,
    latents=None,
    contexts=3,
    explanations=out.parent / "explained.json",
  )
  return out


def test_a_planted_latent_shows_its_word(pages):
  index = site.read_index(pages)
  latents = {each["index"]: each for each in site.read_latents(pages)}
  assert _PLANTED in latents and 9 not in latents  # dead
  paris = latents[_PLANTED]
  assert [piece.strip(" ▁") for piece, _ in paris["top_tokens"]] == [_PARIS]
  assert paris["top_logits"][0][0].strip(" ▁") == _PARIS
  for context in paris["contexts"]:
    assert context["pieces"][context["peak"]].strip(" ▁") == _PARIS
    fires = {
      piece.strip(" ▁")
      for piece, value in zip(context["pieces"], context["values"], strict=True)
      if value > 0
    }
    assert fires == {_PARIS}
  brief = next(each for each in index["latents"] if each["index"] == _PLANTED)
  assert brief["explanation"] == "the city of Paris" and brief["score"] == 0.9
  clearest = max(index["latents"], key=lambda each: each["focus"])
  assert clearest["index"] == _PLANTED


def test_the_card_says_what_was_measured(pages, config, planted):
  card = site.read_index(pages)["sae"]
  fidelity = {name: value for name, value, _ in card["fidelity"]}
  measured = experiment.study(config, ["fidelity"], [str(planted)])
  (row,) = measured["results"]["fidelity"]["saes"]
  for name, key in (("L0", "l0"), ("FVU", "fvu"), ("delta loss", "delta_loss")):
    assert fidelity[name]["mean"] == pytest.approx(row[key]["mean"], rel=1e-4)
    assert fidelity[name]["stderr"] >= 0 and fidelity[name]["n"] == 12
  assert dict(map(tuple, card["about"]))["weights"] == weights_hash(
    saes.load(planted)
  )


def test_the_same_again_gives_the_same_bytes(pages, config, planted, tmp_path):
  given = pages.parent / "explained.json"
  dashboard.build(
    config,
    str(planted),
    tmp_path / "again",
    latents=None,
    contexts=3,
    explanations=given,
  )
  for path in pages.rglob("*.js"):
    again = tmp_path / "again" / path.relative_to(pages)
    assert path.read_bytes() == again.read_bytes()


def test_sentences_are_read_as_the_store_was(config, planted, lm):
  read = dashboard.reader(config, str(planted))
  pieces, values = read(f"w4 {_PARIS} w9 {_PARIS}")
  assert len(pieces) == len(values) == 4
  fires = values[:, _PLANTED] > 0
  assert fires.tolist() == [False, True, False, True]


def test_pages_are_served_with_their_own_sae(config, planted, pages, tmp_path):
  assert dashboard.reader(config, str(planted), pages)("w4 w7")[1].any()
  sae = saes.load(planted)
  other = sae.replace(params=sae.params.replace(b_dec=sae.params.b_dec + 1))
  gemma_scope.save(other, tmp_path / "other")
  with pytest.raises(ValueError, match="pages are of the SAE with weights"):
    dashboard.reader(config, str(tmp_path / "other"), pages)


def test_an_sae_that_does_not_say_its_site(config, planted, tmp_path):
  bare = tmp_path / "params.npz"
  shutil.copy(planted / "params.npz", bare)
  with pytest.raises(ValueError, match=r"at which site .* as res.12=PATH"):
    dashboard.build(config, str(bare), tmp_path / "no")
  dashboard.build(config, f"res.1={bare}", tmp_path / "pages", latents=2)
  card = dict(map(tuple, site.read_index(tmp_path / "pages")["sae"]["about"]))
  assert card["site"] == "res.1"
  read = dashboard.reader(config, f"res.1={bare}", tmp_path / "pages")
  assert read("w4 w7")[1].any()


def test_an_export_of_some(config, planted, tmp_path):
  (path,) = dashboard.write_export(
    config,
    str(planted),
    tmp_path,
    "neuronpedia",
    latents=[_PLANTED],
    model_id="tiny",
    sae_set="mine",
  )
  (feature,) = artifacts.read_json(path)["features"]
  assert feature["feature_index"] == _PLANTED
  with pytest.raises(ValueError, match="as gemma-2-2b and"):
    dashboard.write_export(config, str(planted), tmp_path, "neuronpedia")


def test_what_makes_no_sense_is_refused(config, planted, pages, tmp_path):
  build = lambda **given: dashboard.build(
    config, str(planted), tmp_path / "no", **given
  )
  with pytest.raises(ValueError, match="numbers from 0 to 11"):
    build(latents=[3, 12])
  with pytest.raises(
    ValueError, match="expected .* with {} where the latent's"
  ):
    build(viewer="https://x.example/latent")
  with pytest.raises(
    ValueError, match=r"rows 99,999,999: .* holds [\d,]+ rows"
  ):
    build(rows=99_999_999)
  with pytest.raises(FileNotFoundError, match="no explanations at .*nope.json"):
    build(explanations=tmp_path / "nope.json")
  artifacts.write_json(tmp_path / "other.json", {"study": "fidelity"})
  with pytest.raises(ValueError, match="one of interpretability"):
    build(explanations=tmp_path / "other.json")
  artifacts.write_json(
    tmp_path / "other.json",
    {"study": "interpretability", "hashes": {"x": "1"}, "saes": []},
  )
  with pytest.raises(ValueError, match="none of which has this SAE's weights"):
    build(explanations=tmp_path / "other.json")
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine/file").touch()
  with pytest.raises(FileExistsError, match="holds no pages of ours"):
    dashboard.build(config, str(planted), tmp_path / "mine")
  sae = saes.load(planted)
  dead = sae.replace(
    params=sae.params.replace(threshold=np.full_like(sae.params.threshold, 1e9))
  )
  gemma_scope.save(dead, tmp_path / "dead")
  with pytest.raises(DeadSAEError, match="no latent of"):
    dashboard.build(config, str(tmp_path / "dead"), tmp_path / "no")
  assert not (tmp_path / "no").exists()


@contextlib.contextmanager
def _given(**values):
  flags.FLAGS.mark_as_parsed()
  try:
    with flagsaver.flagsaver(**values):
      yield
  finally:
    flags.FLAGS.unparse_flags()


@pytest.mark.parametrize("flag", ["lm", "data", "workdir"])
def test_a_run_has_its_own_model_and_texts(flag):
  with _given(run="runs/x", **{flag: "other"}):
    with pytest.raises(ValueError, match=f"--run and --{flag}: expected one"):
      binary._config(None)


@pytest.mark.parametrize(
  ("given", "says"),
  [
    ({"live": "x", "out": "y"}, "--out does nothing with --live"),
    ({"live": "x", "rows": 3}, "--rows does nothing with --live"),
    ({"out": "y", "model_id": "z"}, "--model_id does nothing without --export"),
    ({"out": "y", "port": 1}, "--port does nothing without --live"),
    (
      {"out": "y", "export": "neuronpedia", "viewer": "z"},
      "--viewer does nothing with --export",
    ),
  ],
)
def test_flags_that_would_do_nothing_are_refused(given, says):
  with _given(sae="nowhere", **given):
    with pytest.raises(ValueError, match=says):
      binary.main(None, [])


def test_nothing_is_harvested_into_a_run(config, tmp_path):
  copy = tmp_path / "run"
  shutil.copytree(config.workdir, copy)
  shutil.rmtree(copy / "store")
  before = sorted(copy.rglob("*"))
  with _given(run=str(copy)):
    with pytest.raises(FileNotFoundError, match="harvest"):
      binary._config(None)
  assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize(
  ("text", "expected"),
  [("500", 500), ("all", None), ("3,17", [3, 17]), ("0,", [0])],
)
def test_how_latents_are_asked_for(text, expected):
  assert dashboard.parse_latents(text) == expected


@pytest.mark.parametrize("text", ["", "0", "many", "-3", "1,x"])
def test_how_they_are_not(text):
  with pytest.raises(ValueError, match="expected how many"):
    dashboard.parse_latents(text)

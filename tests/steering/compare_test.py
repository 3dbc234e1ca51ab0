"""The comparison on a planted effect, and its numbers against NumPy's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemmascope_jax import gemma, steering
from gemmascope_jax.report import plotting, steering_table
from gemmascope_jax.report.results import ResultError
from gemmascope_jax.report.study_figures import steering as figure
from gemmascope_jax.steering import edits, generation, measures, methods
from tests.steering import planted

LM, SAE, SITE, POLICY = (
  planted.lm(),
  planted.sae(),
  planted.SITE,
  planted.POLICY,
)
PROMPTS = [
  "the river was cold and wind is far near",
  "old trees",
  "rain wind snow",
  "people sing about bread",
  "far stones",
  "light",
]
STRENGTHS = (3.0, 20.0)
METHODS = [
  methods.adding(SAE, planted.PARIS, 1.0, STRENGTHS),
  methods.clamping(SAE, planted.PARIS, 1.0, STRENGTHS),
  methods.random_direction(SITE, 16, 1.0, 3, STRENGTHS),
]
# The shapes of generation_test, so that less is compiled.
OPTIONS = {"samples": 2, "max_new_tokens": 12, "batch": 4}


def _held_out():
  """What the model says itself: no other model predicts it better."""
  said = steering.generate(
    LM, PROMPTS, **(OPTIONS | {"samples": 10, "seed": 7})
  )
  inside = ((said.tokens == POLICY.pad_id) & said.real).any(axis=1)
  return said.tokens[~inside]


HELD_OUT = _held_out()


def _compare(folder=None, **changes):
  given = {"lm": LM, "methods": METHODS, "prompts": PROMPTS}
  given |= {"tokens": HELD_OUT, "policy": POLICY, "words": ["paris", "nile"]}
  given |= {"sae": SAE, "latent": planted.PARIS, "progress": False}
  return steering.compare(folder=folder, **(given | OPTIONS | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module")
def result(folder):
  return json.loads(json.dumps(_compare(folder)))


def _rows(result, method):
  return [row for row in result["rows"] if row["method"] == method]


def test_a_planted_effect_grows_with_the_strength_and_costs_fluency(result):
  plain = result["unsteered"]
  for method in ("add", "clamp"):
    small, large = _rows(result, method)
    for effect in ("words", "latent"):
      values = [each[effect]["mean"] for each in (plain, small, large)]
      assert values == sorted(values) and values[2] > values[0] + 0.15
    losses = [each["held_out_loss"]["change"] for each in (small, large)]
    assert losses[1]["mean"] > losses[0]["mean"] > 0
    assert losses[1]["mean"] > 5 * losses[1]["stderr"] > 0
    assert small["text_loss"]["change"]["mean"] > 0
  assert _rows(result, "add")[1]["repetition"]["change"]["mean"] > 0
  random = _rows(result, "random direction")[1]
  assert random["words"]["mean"] < _rows(result, "add")[1]["words"]["mean"]
  assert "Paris" in _rows(result, "add")[1]["answers"][0]


@jax.jit
def _read(params, tokens, edits):
  """Losses of the next tokens, and the planted latent."""
  out = gemma.forward(LM.config, params, tokens, edits=edits, taps=(SITE,))
  logits = out.logits[:, :-1]
  picked = jnp.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
  losses = jax.nn.logsumexp(logits, axis=-1) - picked
  return losses, SAE.encode(out.acts[SITE])[..., planted.PARIS]


def _by_hand(a, b):
  """(ratio, its standard error) of sums a and weights b."""
  a, b = np.float64(a)[np.array(b) > 0], np.float64(b)[np.array(b) > 0]
  mean, n = a.sum() / b.sum(), len(a)
  off = a - mean * b
  return mean, np.sqrt(n / (n - 1) * (off**2).sum()) / b.sum()


def test_every_number_is_numpys(result):
  edit = METHODS[0].edits(3.0)
  said = steering.generate(LM, PROMPTS, edit, **OPTIONS)
  row = _rows(result, "add")[0]
  groups = lambda x: np.float64(x).reshape(6, 2).sum(axis=1)
  ends = [range(p, e) for p, e in zip(said.prompt_lengths, said.lengths)]  # noqa: B905
  losses, fires = map(np.asarray, _read(LM.params, said.tokens, {}))
  texts = [set(text.split()) for text in said.texts]
  kept = [[i for i in r if t[i] > 2] for r, t in zip(ends, said.tokens)]  # noqa: B905
  # A padding token that it said is a token like any other to the model, but
  # excluded by the policy: what follows it does not count.
  asked = [[i for i in r if t[i - 1] > 2] for r, t in zip(ends, said.tokens)]  # noqa: B905
  assert (said.tokens[said.new] == 0).any()
  pairs = [list(zip(t[r], t[r][1:])) for r, t in zip(ends, said.tokens)]  # noqa: B905
  expected = {
    "words": (["Paris" in words for words in texts], np.ones(12)),
    "text_loss": (
      [sum(losses[s, i - 1] for i in r) for s, r in enumerate(asked)],
      [len(r) for r in asked],
    ),
    "latent": (
      [sum(fires[s, i] > 0 for i in k) for s, k in enumerate(kept)],
      [len(k) for k in kept],
    ),
    "repetition": (
      [len(p) - len(set(p)) for p in pairs],
      [len(p) for p in pairs],
    ),
  }
  for name, (a, b) in expected.items():
    mean, stderr = _by_hand(groups(a), groups(b))
    np.testing.assert_allclose(row[name]["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(
      row[name]["stderr"], stderr, rtol=1e-4, err_msg=name
    )
  keep = POLICY.keep(HELD_OUT)
  counted = keep[:, :-1] & (HELD_OUT[:, 1:] != 0)
  found = {}
  for name, some in (("plain", {}), ("add", edit)):
    placed = {s: steering.at(e, keep) for s, e in some.items()}
    losses = np.float64(_read(LM.params, HELD_OUT, placed)[0])
    found[name] = np.where(counted, losses, 0).sum(axis=1)
  weights = counted.sum(axis=1)
  for name, of in (("plain", result["unsteered"]), ("add", row)):
    mean, stderr = _by_hand(found[name], weights)
    np.testing.assert_allclose(of["held_out_loss"]["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(of["held_out_loss"]["stderr"], stderr, rtol=1e-4)
  mean, stderr = _by_hand(found["add"] - found["plain"], weights)
  change = row["held_out_loss"]["change"]
  np.testing.assert_allclose(change["mean"], mean, rtol=1e-4)
  np.testing.assert_allclose(change["stderr"], stderr, rtol=1e-3)
  assert change["n"] == len(HELD_OUT) and row["words"]["n"] == 6


def test_a_killed_comparison_goes_on(result, folder, monkeypatch):
  files = sorted(folder.iterdir())
  assert len(files) == 7  # one for each strength, and one without edits
  files[3].unlink()
  files[4].write_bytes(files[4].read_bytes()[:100])
  calls = []
  generate = generation.generate
  monkeypatch.setattr(
    generation, "generate", lambda *a, **k: calls.append(a) or generate(*a, **k)
  )
  assert json.loads(json.dumps(_compare(folder))) == result
  assert len(calls) == 2
  # Another seed is another measurement.
  with pytest.raises(ZeroDivisionError):
    monkeypatch.setattr(generation, "generate", lambda *a, **k: 1 / 0)
    _compare(folder, seed=1)


def test_the_figure_shows_the_results_numbers(result):
  with plotting.style():
    panels = figure.draw(result)["steering"].axes
    for panel, cost in zip(panels[:2], ("text_loss", "held_out_loss")):  # noqa: B905
      assert [bars.get_label() for bars in panel.containers] == [
        "add",
        "clamp",
        "random direction",
      ]
      shown = panel.containers[0].lines[0].get_xydata()
      rows = _rows(result, "add")
      expected = [
        (row[cost]["change"]["mean"], 100 * row["words"]["mean"])
        for row in rows
      ]
      np.testing.assert_allclose(shown, expected)
      assert panel.get_xlabel()
    # Without numbers, and of one prompt, it is still drawn.
    bare = json.loads(json.dumps(result))
    bare["rows"][0]["words"] = None
    bare["rows"][1]["words"]["stderr"] = None
    bare["rows"][2]["text_loss"]["change"] = None
    assert figure.draw(bare)["steering"].axes
    assert "–" in steering_table.terminal_table(bare)
    with pytest.raises(ResultError, match="the study 'steering'"):
      figure.draw({"study": "width"})


def test_the_table_has_every_row_and_budget(result):
  text = steering_table.terminal_table(result)
  lines = text.splitlines()
  row = _rows(result, "add")[1]
  line = next(x for x in lines if x.startswith("add  ") and "  20  " in x)
  assert f"{100 * row['words']['mean']:.1f} ±" in line
  assert f"{row['text_loss']['change']['mean']:+.3f} ±" in line
  assert "Within 0.5 nats of text loss:" in lines
  assert "Within 0.25 nats of held-out loss:" in lines
  assert len({len(each) for each in lines[3:10]}) == 1


def test_words_are_whole_words():
  words = ["art", "New York"]
  texts = ["Art!", "the start", "new york,", "new yorkers", "", "an art"]
  found = measures.has_words(texts, words).tolist()
  assert found == [True, False, True, False, False, True]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"methods": []}, "expected at least one, each of another name"),
    ({"methods": METHODS[:1] * 2}, r"\['add', 'add'\]: expected"),
    ({"prompts": PROMPTS[:1]}, "expected a list of at least two"),
    ({"prompts": "rain"}, "prompts 'rain': expected a list"),
    ({"tokens": HELD_OUT + 30}, r"id 61 among the held-out .* ids 0\.\.31"),
    ({"latent": None}, "sae and latent belong together"),
    ({"words": (), "sae": None, "latent": None}, "no effect to measure"),
    ({"words": "Paris"}, "words are 'Paris': expected a list"),
    ({"words": ["Paris", " "]}, "expected a list of at least one, none empty"),
    ({"budgets": {"time": 1.0}}, "budget 1.0 of 'time': expected nats"),
    ({"budgets": {"text_loss": np.nan}}, "budget nan of 'text_loss'"),
  ],
)
def test_errors(change, message):
  with pytest.raises(ValueError, match=message):
    _compare(**change)


@pytest.mark.parametrize("strengths", [(), (0.0, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_strengths_ascend_above_zero(strengths):
  with pytest.raises(ValueError, match="expected numbers above 0, ascending"):
    methods.adding(SAE, 5, 1.0, strengths)


def test_a_loss_that_is_no_number_is_refused():
  edit = jax.tree_util.Partial(
    edits._shifted, jnp.full(16, jnp.nan, jnp.float32), jnp.float32(1)
  )
  huge = methods.Method("huge", lambda _: {SITE: edit}, (1.0,), "")
  with pytest.raises(FloatingPointError, match="'huge' at strength 1 is not"):
    _compare(methods=[huge])


def test_texts_side_by_side():
  text = steering_table.columns(
    [("a\x1b[2J", "left " * 9, "right\nnew"), ("b", "", "x")], width=45
  )
  lines = text.splitlines()
  assert "\x1b" not in text and lines[0].startswith("unsteered")
  assert "right↵new" in lines[3] and all(len(line) <= 45 for line in lines)
  assert {line.index("|") for line in lines if "|" in line} == {22}

"""Other viewers' files, against a brute-force look at every row."""

import json
import os
import subprocess

import numpy as np
import pytest
from safetensors import numpy as safetensors

from gemmascope_jax.dashboards import export
from gemmascope_jax.studies import latents
from tests.studies import latents_test

setting = latents_test.setting
# A latent's fields, as SAEDashboard's class of them takes.
_FIELDS = {
  "feature_index",
  *(f"neuron_alignment_{kind}" for kind in ("indices", "values", "l1")),
  *(f"correlated_neurons_{kind}" for kind in ("indices", "l1", "pearson")),
  *(f"correlated_features_{kind}" for kind in ("indices", "l1", "pearson")),
  *(f"{sign}_{kind}" for sign in ("neg", "pos") for kind in ("str", "values")),
  "frac_nonzero",
  "freq_hist_data_bar_values",
  "freq_hist_data_bar_heights",
  "logits_hist_data_bar_values",
  "logits_hist_data_bar_heights",
  "n_prompts_total",
  "n_tokens_in_prompt",
  "dataset",
  "activations",
  "decoder_weights_dist",
}


@pytest.fixture(scope="module")
def gathered(setting):
  lm, store = setting
  sae = latents_test._sae(store, "res.1")
  return (
    lm,
    store,
    sae,
    latents.gather(lm, sae, store, contexts=4, progress=False),
  )


@pytest.fixture(scope="module")
def batch(gathered, tmp_path_factory):
  lm, store, sae, found = gathered
  details = latents.details(
    lm, sae, store, found, np.arange(0, 30, 3), logit_bins=16
  )
  (path,) = export.neuronpedia(
    tmp_path_factory.mktemp("np"),
    details,
    sae.params.w_dec,
    model_id="tiny",
    layer=1,
    sae_set="mine",
    dataset="words",
    windows=store.tokens.shape,
  )
  return path


def test_a_batch_for_neuronpedia(batch, gathered):
  lm, store, sae, _ = gathered
  found = json.loads(batch.read_text())
  assert found["model_id"] == "tiny" and found["layer"] == 1
  values = np.asarray(sae.encode(store.read("res.1", 0, store.rows)))
  for feature in found["features"]:
    assert set(feature) == _FIELDS
    active = values[:, feature["feature_index"]]
    fires = active > 0
    assert feature["frac_nonzero"] == pytest.approx(fires.mean())
    assert sum(feature["freq_hist_data_bar_heights"]) == fires.sum()
    row = sae.params.w_dec[feature["feature_index"]]
    (first, *_), (value, *_) = (
      feature[f"neuron_alignment_{kind}"] for kind in ("indices", "values")
    )
    assert abs(value) == np.abs(row).max() and row[first] == np.float32(value)
    gain = 1 + np.asarray(lm.params["final_norm"]["scale"], np.float64)
    table = np.asarray(lm.params["embedder"]["embedding"], np.float64)
    logits = table @ (row * gain)
    logits -= logits.mean()
    assert feature["pos_values"][0] == pytest.approx(logits.max(), abs=1e-3)
    assert feature["neg_values"][0] == pytest.approx(logits.min(), abs=1e-3)
    assert sum(feature["logits_hist_data_bar_heights"]) == len(table)
    for each in feature["activations"]:
      assert len(each["tokens"]) == len(each["values"])
      if each["bin_contains"] == -1:
        continue
      low, high = each["bin_min"], each["bin_max"]
      assert low <= max(each["values"]) + 1e-3
      inside = fires & (active >= low) & (active < high)
      assert each["bin_contains"] == pytest.approx(
        inside.sum() / fires.sum(), abs=1e-6
      )
  dead = found["features"][0]
  assert dead["frac_nonzero"] == 0 and dead["activations"] == []


def test_saedashboard_reads_it(batch):
  python = os.environ.get("PEERS_PYTHON", "python3")
  # Newer versions add keys of their own, which may be left out.
  script = (
    "import json, sys\n"
    "from sae_dashboard.neuronpedia.neuronpedia_dashboard import"
    " NeuronpediaDashboardBatch as Batch\n"
    "def holds(more, some):\n"
    "  if isinstance(some, dict):\n"
    "    return all(holds(more[key], some[key]) for key in some)\n"
    "  if isinstance(some, list):\n"
    "    return len(more) == len(some) and all(map(holds, more, some))\n"
    "  return more == some\n"
    "given = json.load(open(sys.argv[1]))\n"
    "assert holds(Batch(**given).to_dict(), given)\n"
  )
  asked = [python, "-c", "import sae_dashboard"]
  if subprocess.run(asked, capture_output=True).returncode:
    pytest.skip(f"sae-dashboard not installed for {python}: set PEERS_PYTHON")
  done = subprocess.run(
    [python, "-c", script, str(batch)], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


def test_examples_of_gemma_scope_2(gathered, tmp_path):
  lm, store, sae, found = gathered
  effects = latents.logit_effects(lm, sae, np.arange(30))
  path = export.gemma_scope_2(
    tmp_path, export.examples(found, store) | export.extremes(effects, 3)
  )
  arrays = safetensors.load_file(path)
  values = np.asarray(sae.encode(store.read("res.1", 0, store.rows)))
  index = np.asarray(store.index(0, store.rows))
  np.testing.assert_array_equal(arrays["tokens"], store.tokens)
  np.testing.assert_allclose(
    arrays["feature_frequencies"], (values > 0).mean(axis=0)
  )
  at = {tuple(place): row for row, place in enumerate(index)}
  for latent in range(30):
    for value, window, position in zip(
      arrays["activations"][latent],
      arrays["seq_ids"][latent],
      arrays["positions"][latent],
      strict=True,
    ):
      if value == 0:
        assert window == position == -1
        continue
      row = at[int(window), int(position)]
      assert value == pytest.approx(values[row, latent], rel=1e-5)
  best = arrays["activations"][:, 0]
  np.testing.assert_allclose(best, values.max(axis=0), rtol=1e-5)
  for latent, effect in enumerate(
    latents.logit_effects(lm, sae, np.arange(30))
  ):
    order = np.argsort(-effect, kind="stable")
    assert arrays["top_tokens"][latent].tolist() == order[:3].tolist()
    lowest = np.argsort(effect, kind="stable")[:3]
    assert arrays["bottom_tokens"][latent].tolist() == lowest.tolist()
    np.testing.assert_array_equal(
      arrays["top_logits"][latent], effect[order[:3]]
    )


def test_attention_has_no_direct_logits(setting):
  lm, store = setting
  sae = latents_test._sae(store, "att.1")
  effects = latents.logit_effects(lm, sae, np.arange(4))
  assert export.extremes(effects) == {}


def test_no_names_and_no_latents_are_refused(gathered, tmp_path):
  _, store, sae, _ = gathered
  given = {
    "model_id": "tiny",
    "layer": 1,
    "sae_set": "mine",
    "dataset": "",
    "windows": store.tokens.shape,
  }
  with pytest.raises(ValueError, match="no latents to write"):
    export.neuronpedia(tmp_path, [], sae.params.w_dec, **given)
  with pytest.raises(ValueError, match="Neuronpedia's names"):
    export.neuronpedia(
      tmp_path, [], sae.params.w_dec, **given | {"model_id": ""}
    )

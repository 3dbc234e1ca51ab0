"""Damaged cards are named, and are never taken for whole ones."""

import numpy as np
import pytest

from gemmascope_jax import artifacts
from gemmascope_jax import sae as saes
from gemmascope_jax.releases import gemma_scope, identity
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  params = Params(
    w_enc=draw(4, 6),
    b_enc=draw(6),
    w_dec=draw(6, 4),
    b_dec=draw(4),
    threshold=np.ones(6, np.float32),
  )
  gemma_scope.save(SAE(params, SAEConfig(site="res.1")), tmp_path / "sae")
  return tmp_path / "sae"


@pytest.mark.parametrize(
  ("card", "says"),
  [
    ([], "no card of an SAE"),
    ({"format": 2}, "does not say family, site"),
    ({"format": 99}, "update gemmascope_jax"),
  ],
)
def test_a_damaged_card_is_named(folder, card, says):
  arrays = [folder / gemma_scope.ARRAYS]
  assert identity.is_whole(folder / identity.CARD, arrays)
  artifacts.write_json(folder / identity.CARD, card)
  with pytest.raises(ValueError, match=says) as error:
    saes.load(folder)
  assert identity.CARD in str(error.value)
  assert not identity.is_whole(folder / identity.CARD, arrays)


@pytest.mark.parametrize(
  ("key", "value", "says"),
  [
    ("family", "banana", "family is 'banana', expected one of jumprelu, gated"),
    ("family", ["topk"], "family is .'topk'., expected"),
    ("k", 0, "k is 0, expected a whole number from 1, or null"),
    ("k", 2.5, "k is 2.5, expected"),
    ("k", True, "k is True, expected"),
    ("site", "res.-1", "site is 'res.-1', expected KIND.LAYER"),
    ("site", "banana.3", "site is 'banana.3', expected KIND.LAYER"),
    ("site", 3, "site is 3, expected KIND.LAYER"),
    ("target_site", "mlp", "target_site is 'mlp', expected KIND.LAYER"),
    ("parts", [["res.1"]], "parts is .*, expected a list of .site, width."),
    ("model", 3, "model is 3, expected a string or null"),
    ("token_policy", [], "token_policy is .*, expected null or"),
    ("token_policy", {"pad_id": 0}, "token_policy is .*, expected null or"),
    (
      "token_policy",
      {"pad_id": 0, "excluded_ids": "12"},
      "token_policy is .*, expected null or",
    ),
    ("provenance", [], "provenance is .*, expected a JSON object"),
    ("sha256", None, "is not the file that"),
  ],
)
def test_each_value_of_a_card_is_checked(folder, key, value, says):
  file = folder / identity.CARD
  artifacts.write_json(file, artifacts.read_json(file) | {key: value})
  with pytest.raises(ValueError, match=says) as error:
    saes.load(folder)
  assert identity.CARD in str(error.value)


def test_no_more_latents_are_kept_than_there_are(folder):
  file = folder / identity.CARD
  artifacts.write_json(file, artifacts.read_json(file) | {"k": 7})
  with pytest.raises(ValueError, match="k is 7, but there are 6 latents"):
    saes.load(folder)


@pytest.mark.parametrize(
  "site", ["res.12", "mlp_in_gain.3", "embedding", "res.1+res.2", None]
)
def test_what_sites_are_called(folder, site):
  file = folder / identity.CARD
  artifacts.write_json(file, artifacts.read_json(file) | {"site": site})
  found = identity.read(file, [folder / gemma_scope.ARRAYS])
  assert found.site == site

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

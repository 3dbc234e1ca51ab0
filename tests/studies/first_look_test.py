"""A first look at an SAE: the numbers of the pass that it is."""

import dataclasses

import numpy as np
import pytest

from gemmascope_jax import studies
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.gemma import sites
from gemmascope_jax.releases import gain
from gemmascope_jax.sae.sae import SAE, Params, SAEConfig
from gemmascope_jax.studies import reconstruction
from gemmascope_jax.studies.subjects import subject
from tests.data import tiny_gemma

TEXT = ["Winter is coming, they said.", "It was", "a summer day." * 5]


def _sae(lm, site, target=None, **config) -> SAE:
  width = sites.site_width(lm.config, "res.0")
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return SAE(
    Params(
      w_enc=normal(width, 40) * np.float32(0.3),
      b_enc=normal(40),
      w_dec=normal(40, width),
      b_dec=normal(width),
      threshold=np.linspace(0, 4, 40, dtype=np.float32),
    ),
    SAEConfig(site=site, target_site=target, **config),
  )


@pytest.fixture(scope="module", name="lm")
def _lm():
  lm = tiny_gemma.lm()
  norm = lm.params["layer_0"]["pre_mlp_norm"]
  norm["scale"] = np.linspace(-0.5, 1, lm.config.width, dtype=np.float32)
  return lm


def test_the_numbers_are_the_passes(lm):
  sae = _sae(lm, "mlp_in_gain.0", "mlp.0", provenance='{"about":{}}')
  found = studies.look(lm, sae, TEXT, sequences=3, window=16, batch=3)
  # The same by hand: tokens in windows of 15 after BOS, the gain moved.
  blank = [lm.tokenizer.blank_id]
  ids = [lm.tokenizer.encode(text) for text in TEXT]
  ids = ids[0] + blank + ids[1] + blank + ids[2]
  tokens = np.full((3, 16), lm.tokenizer.bos_id, np.int32)
  tokens[:, 1:] = np.reshape(ids[:45], (3, 15))
  one = subject(gain.without(sae, lm), "x")
  policy = TokenPolicy.of(lm.tokenizer)
  reading = reconstruction.measure(
    lm, [one], tokens, policy, batch=3, progress=False
  )["x"]
  assert (found.l0, found.fvu) == (reading.l0(), reading.fvu())
  assert found.tokens == 45
  assert str(found).startswith("SAE at mlp_in.0 to mlp.0: L0 ")
  assert f"FVU {found.fvu}" in str(found) and found.fvu.stderr > 0


def test_what_does_not_fit_is_said(lm):
  crosscoder = _sae(lm, "res.0+res.1", parts=(("res.0", 6), ("res.1", 6)))
  with pytest.raises(ValueError, match="is a crosscoder of res.0.res.1"):
    studies.look(lm, crosscoder, TEXT)
  with pytest.raises(ValueError, match="does not say at which site"):
    studies.look(lm, _sae(lm, None), TEXT)
  with pytest.raises(ValueError, match="res.9"):
    studies.look(lm, _sae(lm, "res.9"), TEXT)
  wide = _sae(lm, "att.0")
  with pytest.raises(ValueError, match="of width 12, but att.0 of .* width 16"):
    studies.look(lm, wide, TEXT)
  other = dataclasses.replace(wide.config, site="embedding")
  with pytest.raises(ValueError, match="embedding"):
    studies.look(lm, wide.replace(config=other), TEXT)
  with pytest.raises(ValueError, match=r"look\(lm, sae, \['A text'\]\)"):
    studies.look(lm, _sae(lm, "res.0"), "A text")
  with pytest.raises(ValueError, match="nothing to average: no sequence has"):
    studies.look(lm, _sae(lm, "res.0"), [])

import pytest

from gemmascope_jax import gemma
from gemmascope_jax.gemma import sites
from gemmascope_jax.gemma.sites import Site

CONFIG = gemma.preset("gemma-3-270m")


@pytest.mark.parametrize("name", ["res.0", "mlp.12", "att.7", "mlp_in.3"])
def test_names_round_trip(name):
  assert str(sites.parse(name)) == name
  assert sites.parse(sites.parse(name)) == sites.parse(name)


def test_parse():
  assert sites.parse("mlp_in.13") == Site("mlp_in", 13)


@pytest.mark.parametrize(
  "name", ["res", "res.", "res.-1", "res.01", "mlp_out.3", "res.3 ", "3.res"]
)
def test_what_is_no_site(name):
  with pytest.raises(ValueError, match="expected KIND.LAYER with KIND one of"):
    sites.parse(name)


def test_layer_that_the_model_lacks():
  with pytest.raises(
    ValueError, match=r"^site res\.30: gemma-2-2b has layers 0\.\.25$"
  ):
    sites.check(gemma.preset("gemma-2-2b"), "res.30")
  with pytest.raises(ValueError, match="has layers 0..17"):
    sites.check(CONFIG, Site("mlp", -1))
  assert sites.check(CONFIG, "res.17") == Site("res", 17)


def test_widths():
  widths = {kind: sites.site_width(CONFIG, f"{kind}.1") for kind in sites.KINDS}
  assert widths == {"res": 640, "mlp": 640, "mlp_in": 640, "att": 1024}


def test_layers_needed():
  assert sites.layers_needed(CONFIG, []) == 0
  assert sites.layers_needed(CONFIG, ["mlp.2", "res.5", "att.0"]) == 6

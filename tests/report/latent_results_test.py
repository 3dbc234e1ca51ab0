import pytest

from gemmascope_jax.report import latent_results
from gemmascope_jax.report.results import ResultError


def test_reads_every_field(latents):
  result = latent_results.parse_latents(latents)
  assert (result.sae, result.l0, result.width) == (
    "sparsity 0.0004",
    46.1,
    4096,
  )
  assert len(result.latents) == 36
  latent, source = result.latents[3], latents["latents"][3]
  assert latent.index == source["index"]
  assert latent.maximum == source["max"]
  assert latent.top_logits[0] == tuple(source["top_logits"][0])
  context = latent.contexts[2]
  assert list(context.pieces) == source["contexts"][2]["pieces"]
  assert list(context.values) == source["contexts"][2]["values"]
  assert context.peak == source["contexts"][2]["peak"]


def test_l0_may_carry_its_error(latents):
  latents["sae"]["l0"] = {"mean": 46.1, "stderr": 0.4, "n": 64}
  assert latent_results.parse_latents(latents).l0 == 46.1


def test_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError, match="no latents result at"):
    latent_results.read_latents(tmp_path / "latents.json")


def test_no_latents(latents):
  latents["latents"] = []
  with pytest.raises(ResultError, match="has no latents"):
    latent_results.parse_latents(latents)


def test_another_study(fidelity):
  with pytest.raises(ResultError, match="its study is 'fidelity'"):
    latent_results.parse_latents(fidelity)


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda v: v.update(frequency=1.5), "'frequency' is 1.5"),
    (lambda v: v.update(frequency=None), "'frequency' is missing"),
    (lambda v: v["histogram"]["edges"].pop(), "24 edges and 24 counts"),
    (lambda v: v["contexts"][1]["pieces"].pop(), "31 pieces but 32 values"),
    (lambda v: v["contexts"][1].update(peak=32), "'peak' is 32"),
    (lambda v: v["contexts"][1]["pieces"].__setitem__(4, 7), r"pieces\[4\]"),
    (lambda v: v["contexts"].__setitem__(0, []), r"contexts\[0\] is \[\]"),
    (
      lambda v: v["contexts"][0]["values"].__setitem__(2, "x"),
      "entry 2: 'values' is 'x'",
    ),
    (lambda v: v.update(top_logits=["Paris"]), "expected .token, logit."),
  ],
)
def test_a_wrong_field_is_named(latents, change, message):
  change(latents["latents"][5])
  with pytest.raises(ResultError, match=r"latents\[5\].*" + message):
    latent_results.parse_latents(latents)


def test_a_latent_that_is_no_object(latents):
  latents["latents"][0] = 17
  with pytest.raises(ResultError, match=r"latents\[0\] is 17"):
    latent_results.parse_latents(latents)

"""Losses, KL, L0 and FVU against SAELens's own evaluator.

It runs in the interpreter that PEERS_PYTHON names, else in this one. Its token
rules are matched by a policy each: without ignored tokens it splices, ablates
and counts every position, BOS too; with them it neither splices nor counts
those positions, but still ablates them all.
"""

import dataclasses
import pathlib
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import train_step
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.gemma import GemmaConfig
from gemmascope_jax.sae.sae import SAE, Params
from gemmascope_jax.studies import splice
from gemmascope_jax.studies.records import take
from gemmascope_jax.studies.replacements import Constant, FromSAE
from tests.data import tiny_gemma
from tests.gemma import conftest

BOS, EOS, PAD = 2, 1, 0
SITE, HOOK = "res.1", "model.layers.1"
# There is no padding: peers' evaluations have none, or count it.
POLICIES = {
  "all": TokenPolicy(excluded_ids=(), pad_id=PAD),
  "text": TokenPolicy(excluded_ids=(EOS, BOS), pad_id=PAD),
}


def _tokens():
  tokens = np.random.default_rng(0).integers(3, 61, (6, 11)).astype(np.int32)
  tokens[:, 0] = BOS
  tokens[1, 4], tokens[3, 10] = EOS, EOS
  return tokens


def _params(width, latents=40):
  rng = np.random.default_rng(1)
  w_dec = rng.normal(size=(latents, width)).astype(np.float32)
  w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
  return Params(
    w_enc=(0.5 * w_dec.T).copy(),
    b_enc=rng.normal(0, 0.1, latents).astype(np.float32),
    w_dec=w_dec,
    b_dec=rng.normal(0, 0.3, width).astype(np.float32),
    threshold=rng.uniform(0.2, 0.8, latents).astype(np.float32),
  )


@pytest.fixture(scope="module", name="lm")
def _lm(tmp_path_factory):
  """(ours, folder of Hugging Face's), one tiny random Gemma 2."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  fields = conftest._COMMON | conftest._CASES["gemma2"]
  fields |= {"bos_token_id": BOS, "eos_token_id": EOS}
  config = transformers.Gemma2Config(**fields)
  model = transformers.Gemma2ForCausalLM._from_config(
    config, attn_implementation="eager", dtype=torch.float32
  )
  generator = torch.Generator().manual_seed(7)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      size = 1.0 if "embed" in name else 0.3
      weight.normal_(0.0, size, generator=generator)
  folder = tmp_path_factory.mktemp("saelens")
  model.save_pretrained(folder / "model")
  ours = dataclasses.replace(
    tiny_gemma.lm(),
    config=GemmaConfig.from_hf(config.to_dict(), name="tiny"),
    params=conftest._params(model),
  )
  return ours, folder


@pytest.fixture(scope="module", name="answer")
def _answer(lm):
  """What SAELens says, by "NAME of CASE"."""
  python, (ours, folder) = train_step.peers_python(), lm
  look = (
    "from importlib.util import find_spec as f; exit(f('sae_lens') is None)"
  )
  if subprocess.run([python, "-c", look]).returncode:
    pytest.skip(f"sae-lens not installed for {python}: set PEERS_PYTHON")
  np.savez(
    folder / "problem.npz",
    hook=HOOK,
    tokens=_tokens(),
    special=[BOS, EOS],
    **{
      name: value
      for name, value in vars(_params(ours.config.width)).items()
      if value is not None
    },
  )
  script = pathlib.Path(__file__).with_name("saelens_evaluator.py")
  done = subprocess.run(
    [python, script, folder], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  with np.load(folder / "answer.npz") as archive:
    return dict(archive)


@pytest.fixture(scope="module", name="records")
def _records(lm):
  """case -> (site, SAE, zero ablation), as SAELens splices."""
  ours, _ = lm
  width, found = ours.config.width, {}
  sae = {"sae": FromSAE(SAE(_params(width)))}
  zero = {"zero": Constant(jnp.zeros(width))}
  for case, policy in POLICIES.items():
    run = lambda what, everywhere, policy=policy: splice.run_batch(
      ours, SITE, what, _tokens(), policy, splice_special=everywhere
    )
    site, spliced = run(sae, case == "all")
    _, ablated = run(zero, True)
    found[case] = site, spliced["sae"], ablated["zero"]
  return found


def _close(found, expected, error=1e-5):
  assert found.mean == pytest.approx(float(expected), rel=error)


@pytest.mark.parametrize("case", POLICIES)
def test_losses_are_saelens_s(records, answer, case):
  site, spliced, ablated = records[case]
  for batched in ("", " in batches"):
    of = lambda name, batched=batched: answer[f"{name} of {case}{batched}"]
    _close(site.clean(), of("ce_loss_without_sae"))
    _close(spliced.loss_spliced(site), of("ce_loss_with_sae"))
    _close(ablated.loss_spliced(site), of("ce_loss_with_ablation"))
    _close(spliced.loss_recovered(site, ablated), of("ce_loss_score"), 1e-4)
  # Not trivially: the SAE and the ablation do something.
  rise = spliced.delta_loss(site).mean
  assert abs(rise) > 0.01
  assert abs(ablated.delta_loss(site).mean - rise) > 0.01


@pytest.mark.parametrize("case", POLICIES)
def test_every_token_s_loss_and_kl_are_saelens_s(records, answer, case):
  site, spliced, ablated = records[case]
  of = lambda name: answer[f"each {name} of {case}"]
  for found, name in (
    (site.loss_clean, "ce_loss_without_sae"),
    (spliced.loss, "ce_loss_with_sae"),
    (ablated.loss, "ce_loss_with_ablation"),
  ):
    np.testing.assert_allclose(found, of(name), rtol=1e-5, atol=1e-5)
  for found, name in (
    (spliced.kl, "kl_div_with_sae"),
    (ablated.kl, "kl_div_with_ablation"),
  ):
    # The last position, which predicts nothing here, is theirs alone.
    theirs = of(name)[:, :-1]
    np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=1e-5)
    assert theirs.max() > 0.05


@pytest.mark.parametrize("case", POLICIES)
def test_l0_and_reconstruction_are_saelens_s(records, answer, case):
  site, spliced, _ = records[case]
  for batched in ("", " in batches"):
    of = lambda name, batched=batched: answer[f"{name} of {case}{batched}"]
    _close(spliced.l0(site), of("l0"))
    _close(spliced.fvu(site), 1 - of("explained_variance"), 2e-5)
    _close(spliced.cosine(site), of("cossim"))
  assert 1 < spliced.l0(site).mean < 39
  # Their gamma is a mean over batches, ours one ratio over all tokens.
  name = f"relative_reconstruction_bias of {case}"
  _close(spliced.bias(site), answer[name])
  parts = [slice(start, start + 2) for start in range(0, 6, 2)]
  gammas = [take(spliced, p).bias(take(site, p)).mean for p in parts]
  theirs = float(answer[f"{name} in batches"])
  assert np.mean(gammas) == pytest.approx(theirs, rel=1e-5)


def test_token_rules_matter_here(records):
  """So that the two cases cannot be mistaken for each other."""
  (site, one, _), (other_site, other, _) = records["all"], records["text"]
  for metric in ("fvu", "l0", "delta_loss"):
    gap = (
      getattr(one, metric)(site).mean - getattr(other, metric)(other_site).mean
    )
    assert abs(gap) > 1e-3, metric

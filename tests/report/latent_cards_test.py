import re

import pytest

from gemmascope_jax.report import latent_cards, latent_results


@pytest.fixture
def latent(latents):
  return latent_results.parse_latents(latents).latents[0]


def test_a_card_says_what_the_latent_is(latent):
  card = latent_cards.card(latent)
  assert f'id="latent-{latent.index}"' in card
  assert f'data-frequency="{latent.frequency!r}"' in card
  assert f'data-max="{latent.maximum!r}"' in card
  assert "promotes" in card and "suppresses" in card
  assert card.count("<li>") == len(latent.contexts)


def test_shade_is_the_activation_relative_to_the_maximum(latent):
  context = latent_results.Context(("a", "b", "c"), (0.0, 2.0, 1.0), 1)
  whole = latent_results.Latent(
    **{**vars(latent), "maximum": 4.0, "contexts": (context,)}
  )
  spans = re.findall(r"<span.*?</span>", latent_cards.card(whole))[1:]
  assert spans == [
    '<span title="0">a</span>',
    '<span class="on peak" style="--a:0.50" title="2">b</span>',
    '<span class="on" style="--a:0.25" title="1">c</span>',
  ]


def test_a_silent_context_still_marks_its_peak(latent):
  context = latent_results.Context(("a", "b"), (0.0, 0.0), 0)
  whole = latent_results.Latent(
    **{**vars(latent), "maximum": 0.0, "contexts": (context,)}
  )
  assert 'class="on peak" style="--a:0.00"' in latent_cards.card(whole)


def test_histogram_has_a_bar_for_each_bin_that_fires(latent):
  svg = latent_cards.histogram(latent)
  assert svg.count("<rect") == sum(count > 0 for count in latent.counts)
  heights = [float(h) for h in re.findall(r'height="([\d.]+)"/>', svg)]
  assert max(heights) == 56.0
  assert f"Histogram of {sum(latent.counts):,.0f} activations" in svg


def test_a_latent_that_never_fires(latent):
  dead = latent_results.Latent(
    **{
      **vars(latent),
      "frequency": 0.0,
      "maximum": 0.0,
      "edges": (0.0, 0.0),
      "counts": (0,),
      "contexts": (),
      "top_logits": (),
    }
  )
  card = latent_cards.card(dead)
  assert "<b>0%</b>" in card and "promotes" not in card

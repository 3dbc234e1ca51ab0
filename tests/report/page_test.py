import base64
import hashlib
import html.parser
import json
import re

import pytest

from gemmascope_jax.report import latent_results, page, results, token_text

_HOSTILE = '</span><script src="http://evil.example/x.js"></script><b>'


class _Reader(html.parser.HTMLParser):
  """Collects tags, attributes, and the tokens of each context."""

  def __init__(self):
    super().__init__()
    self.tags, self.attributes, self.contexts, self.ids = [], [], [], []
    self._token = False
    self._in_context = False
    self.text = ""

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append(tag)
    self.attributes += attrs.items()
    if "id" in attrs:
      self.ids.append(attrs["id"])
    if tag == "p" and attrs.get("class") == "context":
      self.contexts.append([])
      self._in_context = True
    elif tag == "span" and self._in_context:
      self.contexts[-1].append("")
      self._token = True

  def handle_endtag(self, tag):
    if tag == "span":
      self._token = False
    elif tag == "p":
      self._in_context = False

  def handle_data(self, data):
    self.text += data
    if self._token:
      self.contexts[-1][-1] += data


def _read(text):
  reader = _Reader()
  reader.feed(text)
  return reader


@pytest.fixture
def plots():
  return {
    name: f'<svg id="{name}-figure"></svg>'
    for name in ("curve", "training", "spectrum")
  }


@pytest.fixture
def whole(fidelity, latents, plots):
  return page.page(
    results.parse_fidelity(fidelity),
    plots,
    latent_results.parse_latents(latents),
  )


def test_every_token_of_every_context_in_order(whole, latents):
  wanted = [
    [token_text.visible(piece, leading=False) for piece in context["pieces"]]
    for latent in latents["latents"]
    for context in latent["contexts"]
  ]
  assert len(wanted) == 36 * 6
  assert _read(whole).contexts == wanted


def test_nothing_is_loaded(whole):
  assert not re.search(r"(https?:)?//[a-z]", whole, re.IGNORECASE)
  reader = _read(whole)
  assert not {"iframe", "img", "object", "embed", "base"} & set(reader.tags)
  for name, value in reader.attributes:
    assert name != "src"
    if name == "href":
      assert value.startswith(("#", "data:,"))
    assert not name.startswith("on")
  assert "@import" not in whole and "url(" not in whole
  assert "default-src 'none'" in whole


def test_the_policy_allows_exactly_the_pages_script(whole):
  script = re.search(r"<script>(.*?)</script>", whole, re.DOTALL)[1]
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  assert f"script-src 'sha256-{digest}'" in whole
  assert whole.count("<script") == 1


def test_strings_from_data_are_inert(fidelity, latents, plots):
  fidelity["model"]["label"] = _HOSTILE
  fidelity["site"] = _HOSTILE
  fidelity["code"] = _HOSTILE
  fidelity["tokens"]["sources"] = [_HOSTILE]
  fidelity["tokens"]["split"] = _HOSTILE
  fidelity["config"][_HOSTILE] = _HOSTILE
  for row in fidelity["rows"]:
    row["name"] = _HOSTILE
    row["family"] = _HOSTILE
  latents["sae"]["name"] = _HOSTILE
  for latent in latents["latents"]:
    latent["top_logits"] = [[_HOSTILE, 1.0]]
    latent["bottom_logits"] = [[_HOSTILE, -1.0]]
    for context in latent["contexts"]:
      context["pieces"] = [_HOSTILE] * 32
  text = page.page(
    results.parse_fidelity(fidelity),
    plots,
    latent_results.parse_latents(latents),
  )
  reader = _read(text)
  assert reader.tags.count("script") == 1
  assert set(reader.contexts[0]) == {_HOSTILE}
  assert not any(name == "src" for name, _ in reader.attributes)
  assert reader.text.count("evil.example") > 36 * 6 * 32


def test_tags_are_closed_in_order(whole):
  void = {"meta", "link", "input", "wbr", "path", "rect"}
  stack = []
  for slash, tag, own in re.findall(
    r"<(/?)([a-z0-9]+)[^>]*?(/?)>",
    re.sub(r"<(script|style)>.*?</\1>", "", whole, flags=re.DOTALL),
  ):
    if tag in void or own:
      continue
    if slash:
      assert stack.pop() == tag
    else:
      stack.append(tag)
  assert not stack


def test_ids_are_unique_and_links_lead_somewhere(whole):
  reader = _read(whole)
  assert len(reader.ids) == len(set(reader.ids))
  links = [v[1:] for k, v in reader.attributes if k == "href" and v[0] == "#"]
  assert set(links) <= set(reader.ids)


def test_it_says_what_it_is(whole, fidelity):
  text = _read(whole).text
  for words in (
    "gemma-3-270m (Q4_K_M, dequantised)",
    "res.5, residual stream after block 5",
    "16,300 tokens in 64 sequences of 256 from wikipedia_en (held out)",
    "0.1.0+1a51ffa2b3c4",
    "Small sample: 64 sequences",
    "0.218 ± 0.014",
    "± is one standard error over 64 sequences",
    "each trained on 1,048,576 activations",
    "130,000 activations (train) on which 3,871 latents fire",
    json.dumps(fidelity["token_policy"]["pad_id"]),
    fidelity["model"]["weights_hash"],
  ):
    assert words in text


def test_parts_that_are_not_there_are_left_out(fidelity, plots):
  result = results.parse_fidelity(fidelity)
  text = page.page(result, {"curve": plots["curve"]})
  for name in ("training", "spectrum", "latents"):
    assert f'id="{name}"' not in text and f'href="#{name}"' not in text
  assert 'id="curve"' in text and 'id="table"' in text


def test_tools_are_hidden_until_the_script_shows_them(whole):
  assert re.search(r'<div class="tools"[^>]* hidden>', whole)
  assert "prefers-color-scheme:dark" in whole and "@media print" in whole


def test_same_inputs_same_page(whole, fidelity, latents, plots):
  again = page.page(
    results.parse_fidelity(fidelity),
    plots,
    latent_results.parse_latents(latents),
  )
  assert again == whole

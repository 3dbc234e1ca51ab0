"""The pages in a real browser, from a disk and from a server."""

import threading

import pytest

from gemmascope_jax.dashboards import live, site
from tests.dashboards import live_test, made
from tests.dashboards.browser import browser

_DOWN, _LEFT, _RIGHT = "\ue015", "\ue012", "\ue014"
_ENTER, _ESCAPE = "\ue007", "\ue00c"


@pytest.fixture(scope="module")
def window():
  with browser() as found:
    yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
  return site.write(
    tmp_path_factory.mktemp("site") / "pages",
    made.SAE,
    made.latents(),
    explanations=made.EXPLANATIONS,
    viewer="https://example.org/{}",
  )


@pytest.fixture
def page(window, pages):
  window.open("about:blank")
  window.open(pages.as_uri())
  window.wait("return document.querySelectorAll('#rows tr').length")
  yield window
  assert window.errors() == []
  assert not window.run("return window.bad")


def test_the_list_says_what_there_is(page):
  assert page.text("h1") == "an SAE <b>at</b> res.1"
  assert page.text("#count") == "70 latents"
  # Explained ones first, the best of them on top.
  rows = page.texts("#rows tr")
  assert len(rows) == 70 and rows[0].startswith("5")
  assert "the token Paris <i>only</i> (0.97)" in rows[0]
  assert "<img src=x onerror=alert(1)>" in rows[0]
  assert not page.run("return document.querySelector('main img, main script')")


def test_search_finds_words_explanations_and_numbers(page):
  page.press("/")
  page.wait("return document.activeElement.id === 'search'")
  page.press("paris")
  page.wait("return document.querySelectorAll('#rows tr').length < 70 || true")
  # " Paris" is among what every latent promotes.
  assert page.text("#count") == "70 latents"
  page.press(" only")
  assert page.texts("#rows td:nth-child(1)") == ["5"]
  page.run("document.getElementById('search').value = ''")
  page.press("#69")
  assert page.texts("#rows td:nth-child(1)")[0] == "69"
  page.press("zzz")
  assert "No latent has" in page.text("#rows")
  page.press(_ESCAPE)


def test_sorting(page):
  page.run(
    "const s = document.getElementById('sort'); s.value = 'often';"
    "s.dispatchEvent(new Event('change'))"
  )
  assert page.texts("#rows td:nth-child(1)")[:2] == ["68", "67"]
  assert page.texts("#rows td:nth-child(2)")[0] == "6.9 %"
  page.run(
    "const s = document.getElementById('sort'); s.value = 'rare';"
    "s.dispatchEvent(new Event('change'))"
  )
  assert page.texts("#rows td:nth-child(2)")[0] == "0 %"


def test_a_latents_page(page):
  page.run("location.hash = '#5'")
  page.wait("return document.querySelector('[data-latent=\"5\"]')")
  said = page.text("article")
  assert "Latent 5" in said and "fires on 0.2 % ± 0.1 of tokens" in said
  assert "“the token Paris <i>only</i>” score 0.97" in said
  assert "50 % of its activations are below this" in said
  link = "return document.querySelector('article a[rel]').href"
  assert page.run(link) == "https://example.org/5"
  # Text of the data set is text.
  assert "<script>window.bad=1</script>" in page.text(".context")
  peaks = page.texts(".token.peak")
  assert peaks[0] == " city" or peaks[0] == "city"
  shade = page.run(
    "return getComputedStyle(document.querySelector('.token.peak'))"
    ".backgroundColor"
  )
  assert "240, 140, 30" in shade or "240 140 30" in shade
  page.hover(".token.peak")
  tip = page.wait(
    "const t = document.getElementById('tip'); return !t.hidden && t.innerText"
  )
  assert tip.startswith("␣city") and tip.endswith("8")
  page.hover("svg.histogram rect")
  tip = page.wait(
    "const t = document.getElementById('tip'); return !t.hidden && t.innerText"
  )
  assert tip == "5 tokens of 0 to 1"
  # A neighbour that is shown is a link, another one is not.
  assert page.run(
    "return [...document.querySelectorAll('article li a')].map(a => a.hash)"
  ) == ["#6", "#7"]


def test_a_latent_that_never_fired_and_one_that_is_not_there(page):
  page.run("location.hash = '#69'")
  page.wait("return document.querySelector('[data-latent=\"69\"]')")
  assert "It fired nowhere in these texts." in page.text("article")
  page.run("location.hash = '#777'")
  page.wait("return document.querySelector('.warn')")
  assert "Latent 777 is not among the 70" in page.text("main")


def test_the_keyboard(page):
  page.press(_DOWN + "j")
  assert page.texts("#rows tr.on td:first-child") == ["1"]
  page.press("k" + _ENTER)
  page.wait("return document.querySelector('[data-latent=\"0\"]')")
  page.press(_LEFT)
  page.wait("return document.querySelector('[data-latent=\"5\"]')")
  page.press(_RIGHT)
  page.wait("return document.querySelector('[data-latent=\"0\"]')")
  page.press(_ESCAPE)
  page.wait("return document.getElementById('rows')")
  page.press("?")
  assert page.run("return document.getElementById('help').open")
  page.press(_ESCAPE)


def test_the_saes_card(page):
  page.run("location.hash = '#sae'")
  page.wait("return document.querySelector('table.about')")
  said = page.text("main")
  assert "0.25 ± 0.01" in said and "missed variance" in said
  assert "null" not in said and "NaN" not in said and "undefined" not in said


def test_dark_and_light_can_be_read(page):
  colours = (
    "const s = getComputedStyle(document.body);"
    "return [s.backgroundColor, s.color]"
  )
  page.prefers("light")
  assert page.run(colours) == ["rgb(255, 255, 255)", "rgb(26, 28, 32)"]
  page.prefers("dark")
  assert page.run(colours) == ["rgb(21, 23, 27)", "rgb(232, 234, 237)"]
  page.prefers("light")


def test_what_a_text_could_smuggle_in_is_not_run(page):
  """Even if a page's own care failed, see the page's policy."""
  page.run(
    "const image = new Image(); image.setAttribute('onerror', 'window.bad = 1');"
    "image.src = 'data:,'; document.body.append(image);"
    "const script = document.createElement('script');"
    "script.textContent = 'window.bad = 1'; document.body.append(script);"
    "const form = document.createElement('form');"
    "form.action = 'https://example.org'; document.body.append(form);"
    "form.submit();"
  )
  refused = page.wait_for_errors("Content Security Policy", 3)
  assert any("script" in message for message in refused)
  assert any("form-action" in message for message in refused)


def test_a_chunk_that_is_missing_is_said(window, pages, tmp_path):
  folder = tmp_path / "copy"
  folder.mkdir()
  (folder / "data").mkdir()
  for name in ("index.html", "page.js", "page.css", "data/index.js"):
    (folder / name).write_bytes((pages.parent / name).read_bytes())
  window.open((folder / "index.html").as_uri() + "#5")
  window.wait("return document.querySelector('.warn')")
  assert "copy the whole folder" in window.text(".warn")
  window.errors()  # of the file that is not there


def test_a_sentence_is_answered_by_a_server(window, pages):
  with live.start(pages.parent, live_test._read) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    window.open(f"http://127.0.0.1:{server.server_port}/#live")
    window.wait("return document.getElementById('go')")
    window.run(
      "document.getElementById('sentence').value = '<i>a';"
      "document.getElementById('go').click()"
    )
    window.wait("return document.querySelector('#fired h3')")
    assert window.texts("#fired h3")[0].startswith("Latent 68")
    assert window.texts("#fired .context")[0].replace("\n", "").endswith("<i>a")
    assert window.errors() == []
    server.shutdown()

"""The folder of pages: what is in it, and what is refused."""

import pytest

from gemmascope_jax.dashboards import site
from tests.dashboards import made


def test_everything_can_be_read_back(tmp_path):
  page = site.write(
    tmp_path / "pages", made.SAE, made.latents(), explanations=made.EXPLANATIONS
  )
  assert page == tmp_path / "pages/index.html"
  names = {p.name for p in (tmp_path / "pages/data").iterdir()}
  assert names == {"index.js", "00000.js", "00001.js", "00002.js"}
  index = site.read_index(tmp_path / "pages")
  assert index["sae"] == made.SAE and index["explained"]
  brief = index["latents"][5]
  assert brief["explanation"] == "the token Paris <i>only</i>"
  assert brief["score"] == 0.97 and brief["top_tokens"][0] == " Paris"
  # 0.9 of the largest on all its words, rarely otherwise.
  assert brief["focus"] == pytest.approx(0.9 * 0.998**10, rel=1e-5)
  assert index["latents"][69]["focus"] == 0
  back = list(site.read_latents(tmp_path / "pages"))
  assert [each["index"] for each in back] == list(range(70))
  assert back[3]["contexts"] == made.latents()[3]["contexts"]
  assert back[3]["by_firing"][0][1] is None  # NaN is no JSON


def test_no_text_can_leave_its_string(tmp_path):
  site.write(tmp_path / "pages", made.SAE, made.latents())
  for path in (tmp_path / "pages/data").iterdir():
    content = path.read_bytes()
    assert content.isascii() and content.endswith(b");\n")
    assert content.startswith(b"dashboard.")


def test_pages_are_replaced_and_nothing_else_is(tmp_path):
  site.write(tmp_path / "pages", made.SAE, made.latents())
  site.write(tmp_path / "pages", made.SAE, made.latents()[:3])
  assert len(site.read_index(tmp_path / "pages")["latents"]) == 3
  assert not (tmp_path / "pages/data/00001.js").exists()
  assert {p.name for p in tmp_path.iterdir()} == {"pages"}
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine/thesis.txt").write_text("years of work")
  with pytest.raises(FileExistsError, match="holds no pages of ours"):
    site.write(tmp_path / "mine", made.SAE, made.latents())
  assert (tmp_path / "mine/thesis.txt").exists()

  def fails():
    yield made.latent(0)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    site.write(tmp_path / "pages", made.SAE, fails())
  assert len(site.read_index(tmp_path / "pages")["latents"]) == 3


@pytest.mark.parametrize(
  ("changed", "says"),
  [
    ({"latents": []}, "no latents to show"),
    ({"explanations": {77: {"explanation": "x"}}}, "latent 77, which is not"),
    ({"viewer": "javascript:alert(1)"}, "begins with https"),
  ],
)
def test_what_makes_no_sense_is_refused(tmp_path, changed, says):
  given = {"sae": made.SAE, "latents": made.latents()} | changed
  with pytest.raises(ValueError, match=says):
    site.write(tmp_path / "pages", **given)
  assert not (tmp_path / "pages").exists()


def test_a_folder_without_pages_is_said(tmp_path):
  with pytest.raises(FileNotFoundError, match="no pages at"):
    site.read_index(tmp_path)

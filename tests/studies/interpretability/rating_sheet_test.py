"""Sheets: blind, inert, and a page that works (run in node where it is)."""

import csv
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from gemmascope_jax import artifacts
from gemmascope_jax.studies.interpretability import rating_page, rating_sheet
from gemmascope_jax.studies.interpretability.rating_sheet import Item
from tests.studies.interpretability import planted

EVIL = "</script><img src=x onerror=alert(1)><!--"


class Evil(planted.Tokenizer):
  def pieces(self, ids):
    return [EVIL if i == planted.WORD else f"=w{i} " for i in ids]


def _items(count=12):
  families = ("jumprelu", "topk", "gated")
  return [
    Item(
      f"secret-{families[i % 3]}",
      families[i % 3],
      71_000 + i,
      planted.sample(i, "word").shown,
      f"=meaning {i} {EVIL}" if i else None,
    )
    for i in range(count)
  ]


@pytest.fixture
def sheet(tmp_path):
  key = rating_sheet.write(tmp_path, _items(), Evil(), seed=4)
  read = lambda name: (tmp_path / name).read_text()
  return key, read(rating_sheet.PAGE), read(rating_sheet.TABLE), tmp_path


def _data(page):
  (text,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
  return json.loads(text)


def test_raters_cannot_tell_which_is_which(sheet):
  key, page, table, folder = sheet
  for text in (page, table):
    for hidden in ("secret", "jumprelu", "topk", "gated", "71000", "71011"):
      assert hidden not in text
  assert artifacts.read_json(folder / rating_sheet.KEY) == key
  shown = _data(page)
  ids = [item["id"] for item in shown["items"]]
  assert shown["sheet"] == key["sheet"]
  assert ids == list(key["items"]) and len(set(ids)) == 12
  order = [key["items"][id_]["latent"] for id_ in ids]
  assert sorted(order) == list(range(71_000, 71_012)) != order
  # The same order in both files, and each explanation with its own latent.
  rows = list(csv.DictReader(io.StringIO(table)))
  assert [row["item"] for row in rows] == ids
  for item, latent in zip(shown["items"], order, strict=True):
    number = latent - 71_000
    if number:
      assert item["explanation"].startswith(f"=meaning {number} ")
    else:
      assert item["explanation"] is None
    levels = [level for c in item["contexts"] for _, level in c]
    assert max(levels) == 10 and len(item["contexts"]) == 6


def test_scales_do_not_show(tmp_path):
  """Twice the activations give the same sheet."""
  import dataclasses

  items = _items()
  doubled = [
    dataclasses.replace(
      item,
      contexts=dataclasses.replace(
        item.contexts, activations=item.contexts.activations * 2
      ),
    )
    for item in items
  ]
  for name, each in (("a", items), ("b", doubled)):
    rating_sheet.write(tmp_path / name, each, Evil())
  for file in (rating_sheet.PAGE, rating_sheet.TABLE):
    a, b = ((tmp_path / name / file).read_bytes() for name in "ab")
    assert a == b


def test_tokens_are_only_text(sheet):
  _, page, table, _ = sheet
  assert EVIL not in page and "<img" not in page
  assert page.count("<script") == page.count("</script>") == 2
  assert "innerHTML" not in rating_page.JS
  shown = json.dumps(_data(page))
  assert "onerror" in shown  # it is there, as text
  for row in csv.reader(io.StringIO(table)):
    for cell in row:
      assert cell[:1] not in ("=", "+", "-", "@")
  assert "http" not in re.sub(r"http-equiv", "", page)


def test_what_makes_no_sheet_is_refused(tmp_path):
  with pytest.raises(ValueError, match="nothing to rate"):
    rating_sheet.write(tmp_path, [], Evil())
  with pytest.raises(ValueError, match="latent 71000 .* is there twice"):
    rating_sheet.write(tmp_path, _items()[:1] * 2, Evil())


def test_items_of_a_result_are_the_samples_with_their_explanations():
  samples = {"a": [planted.sample(i, "word") for i in range(3)]}
  rows = [
    {"latent": i, "explanation": f"meaning {i}" if i else {"tokens": []}}
    for i in range(3)
  ]
  sae = {"name": "a", "family": "topk", "kind": "untrained", "latents": rows}
  found = rating_sheet.items({"saes": [sae]}, samples, each=2)
  assert [(i.latent, i.family) for i in found] == [
    (0, "untrained"),
    (1, "untrained"),
  ]
  assert [i.explanation for i in found] == [None, "meaning 1"]
  blank = rating_sheet.items({"saes": [sae]}, samples, explanations=False)
  assert [i.explanation for i in blank] == [None] * 3
  other = {"a": [planted.sample(9, "word")]}
  with pytest.raises(ValueError, match="latent 9 of 'a' is not in the result"):
    rating_sheet.items({"saes": [sae]}, other)


_NODE = """
const fs = require("fs");
const listeners = {}, elements = {}, saved = {};
let downloads = [], blob = null;
class Element {
  constructor(tag) {
    this.tagName = tag.toUpperCase();
    this.on = {}; this.attributes = {}; this.children = [];
    this.hidden = false; this.text = ""; this.style = {setProperty() {}};
  }
  set textContent(text) { this.text = text; this.children = []; }
  get textContent() {
    return this.text + this.children.map(
      c => typeof c === "string" ? c : c.textContent).join("");
  }
  append(child) { this.children.push(child); }
  addEventListener(name, call) { this.on[name] = call; }
  setAttribute(name, value) { this.attributes[name] = value; }
  focus() { elements.focused = this; }
  click() {
    if (this.tagName === "A") downloads.push([this.download, blob]);
    else if (this.on.click) this.on.click();
  }
}
const get = id => elements[id] = elements[id] || new Element("div");
get("data").textContent = fs.readFileSync(process.argv[3], "utf8");
global.document = {
  getElementById: get,
  createElement: tag => new Element(tag),
  addEventListener: (name, call) => listeners[name] = call,
};
global.localStorage = {
  getItem: key => key in saved ? saved[key] : null,
  setItem: (key, value) => saved[key] = value,
};
global.Blob = class { constructor(parts) { blob = parts.join(""); } };
URL.createObjectURL = () => "blob:x";
URL.revokeObjectURL = () => {};
const source = fs.readFileSync(process.argv[2], "utf8");
eval(source);
const key = (key, target) => listeners.keydown({
  key, target: target || new Element("body"), repeat: false});
const out = {};
get("csv").click();
out.nameless = downloads.length;
out.asked = !get("name").hidden;
get("rater").on.input({target: {value: 'Ann "A" B'}});
key("y", new Element("input"));  // typing a name rates nothing
out.typed = get("done").textContent;
key("y"); key("m"); get("NO").click();
key("ArrowLeft");
out.pressed = ["YES", "MAYBE", "NO"].map(l => get(l).attributes["aria-pressed"]);
key("1");  // NO becomes YES
out.place = get("place").textContent;
out.done = get("done").textContent;
eval(source);  // the page is opened again
out.again = get("place").textContent;
out.rater = get("rater").value;
get("csv").click(); get("json").click();
out.downloads = downloads;
out.text = get("contexts").textContent;
console.log(JSON.stringify(out));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_pages_script_rates_keeps_and_downloads(sheet, tmp_path):
  from gemmascope_jax.studies.interpretability import ratings

  key, page, _, folder = sheet
  (text,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
  for name, content in (
    ("page.js", rating_page.JS),
    ("data.json", text),
    ("drive.js", _NODE),
  ):
    (tmp_path / name).write_text(content)
  done = subprocess.run(
    ["node", "drive.js", "page.js", "data.json"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=30,
  )
  assert done.returncode == 0, done.stderr
  out = json.loads(done.stdout)
  assert out["nameless"] == 0 and out["asked"]
  assert out["typed"] == "0 rated" and out["done"] == "3 rated"
  assert out["pressed"] == [False, False, True]
  assert out["place"] == out["again"] == "4 of 12"
  assert out["rater"] == 'Ann "A" B'
  assert "onerror" in out["text"]
  found = []
  for name, content in out["downloads"]:
    assert re.fullmatch(r"ratings_\w+_Ann_A_B\.(csv|json)", name)
    path = tmp_path / name
    path.write_text(content)
    found.append(ratings.read([path], folder / rating_sheet.KEY))
  assert found[0] == found[1]
  assert [rating.label for rating in found[0]] == ["YES", "MAYBE", "YES"]
  expected = list(key["items"].values())[:3]
  assert [r.latent for r in found[0]] == [e["latent"] for e in expected]
  assert {r.rater for r in found[0]} == {'Ann "A" B'}


def test_json_is_the_same_text_after_it_was_made_inert():
  value = {"x": [EVIL, "&amp;", "\u2028", np.float64(1.5)]}
  text = rating_page._inert_json(value)
  assert json.loads(text) == value
  assert not set("<>&\u2028") & set(text)


def test_another_sheet_does_not_take_the_place_of_one(tmp_path):
  rating_sheet.write(tmp_path, _items(6), Evil())
  before = (tmp_path / rating_sheet.KEY).read_bytes()
  with pytest.raises(FileExistsError, match="holds another sheet"):
    rating_sheet.write(tmp_path, _items(5), Evil())
  assert (tmp_path / rating_sheet.KEY).read_bytes() == before
  rating_sheet.write(tmp_path, _items(6), Evil())  # the same again

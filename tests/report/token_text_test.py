import pytest

from gemmascope_jax.report import token_text


@pytest.mark.parametrize(
  "piece, text",
  [
    (" the", "␣the"),
    ("the", "the"),
    (" ", "␣"),
    ("\n", "↵"),
    ("\n\n", "↵↵"),
    ("\t", "⇥"),
    ("  x", "␣␣x"),
    (" " * 12, "␣×12"),
    ("a b", "a b"),
    ("\u202eabc", "‹U+202E›abc"),
    ("\x00", "‹U+0000›"),
    ("\ud800", "‹U+D800›"),
    ("\u2028", "‹U+2028›"),
    ("می\u200cخواهم", "می\u200cخواهم"),
    ("東京", "東京"),
    ("-----", "-----"),
    ("", ""),
  ],
)
def test_nothing_is_invisible(piece, text):
  assert token_text.visible(piece) == text


def test_a_word_keeps_its_space_in_context():
  assert token_text.in_context(" the") == " the"
  assert token_text.in_context(" ") == "␣"
  assert token_text.in_context("\n") == "↵<wbr>"


def test_html_is_inert():
  piece = '</span><script>alert("x")</script>'
  for shown in (
    token_text.in_context(piece),
    token_text.in_list(piece),
    token_text.escape(piece),
  ):
    assert "<" not in shown and '"' not in shown
    assert "&lt;script&gt;" in shown


def test_escape_keeps_ordinary_text():
  assert token_text.escape("a & b, 3 < 4") == "a &amp; b, 3 &lt; 4"
  assert token_text.escape(" x") == " x"

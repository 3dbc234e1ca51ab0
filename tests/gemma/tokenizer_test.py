"""Tokenizers: Hugging Face's, and the one rebuilt from the demo's GGUF.

The golden ids are the official `tokenizer.json`'s of Gemma 3. Beyond them, the
rebuilt tokenizer was once compared with it on 438 documents (651,076 tokens of
Python, English, French, Spanish, German and Dutch): all ids were equal.
"""

import json
import pathlib
import sys

import pytest
import tokenizers

from gemmascope_jax.gemma import sentencepiece_model, tokenizer
from gemmascope_jax.gemma.weights import demo, gguf
from gemmascope_jax.gemma.weights.errors import (
  TokenizerNotFoundError,
  WeightsNotFoundError,
)

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import tiny_files  # noqa: E402

GOLDEN = {
  "": [],
  "The capital of France is Paris.": [
    *(818, 5279, 529, 7001, 563, 9079, 236761)
  ],
  " leading and trailing  ": [5830, 532, 45330, 138],
  "x" + 37 * " " + "y": [236781, 167, 142, 236762],
  "def f(x):\n\treturn  {  'a' :   1 }\n\n\n    # 1234567.89\r\n": [
    *(2063, 517, 236769, 236781, 1473, 107, 255968, 2060, 138, 236782, 138),
    *(236789, 236746, 236789, 1017, 139, 236770, 682, 109, 140, 236865),
    *(236743, 236770, 236778, 236800, 236812, 236810, 236825, 236832, 236761),
    *(236828, 236819, 251, 107),
  ],
  "Größe, naïve, 東京都, привет, हिन्दी, العربية": [
    *(9322, 237001, 16756, 236764, 120362, 236764, 223954, 236764, 36097),
    *(236764, 85394, 236764, 87595),
  ],
  "👩‍🚀 🏴‍☠️ 🇩🇪": [
    *(243767, 237243, 242015, 236743, 247292, 237243, 247132, 238178, 236743),
    *(246841, 245562),
  ],
  "<start_of_turn>user\nHi<end_of_turn>\n": [105, 2364, 107, 10979, 106, 107],
  "<bos>a<eos> <pad><unk><mask><bos bos>": [
    *(2, 236746, 1, 236743, 0, 3, 4, 236820, 46757, 25835, 236813)
  ],
  "\x00\x7f\ue000\U000130c0": [238, 251541, 245863, 478, 385, 369, 366],
  "<b>bold</b><table>\n\n": [200, 15640, 209, 168, 108],
  "▁a ▁": [496, 138],
  "<0x41><0xE2>": [
    *(236820, 236771, 236781, 236812, 236770, 1798, 236771, 134948, 236778),
    236813,
  ],
}


@pytest.fixture(scope="module")
def gemma_3():
  """The demo's tokenizer, rebuilt from the GGUF or found in the cache."""
  try:
    path = demo.path()
  except WeightsNotFoundError as error:
    pytest.skip(str(error))
  return gguf.open_file(path).tokenizer()


@pytest.mark.parametrize("text", GOLDEN)
def test_ids_of_the_rebuilt_tokenizer_are_the_official_ones(gemma_3, text):
  assert gemma_3.encode(text) == GOLDEN[text]


@pytest.mark.parametrize("text", GOLDEN)
def test_text_comes_back_from_ids_and_from_pieces(gemma_3, text):
  ids = GOLDEN[text]
  pieces = gemma_3.pieces(ids)
  assert len(pieces) == len(ids)
  assert "".join(pieces) == text.replace("▁", " ")
  for word in ("<bos>", "<eos>", "<pad>"):
    text = text.replace(word, "")
  if "<unk>" not in text:
    assert gemma_3.decode(ids) == text.replace("▁", " ")


def test_the_special_ids_of_gemma_3(gemma_3):
  assert (gemma_3.pad_id, gemma_3.eos_id, gemma_3.bos_id) == (0, 1, 2)
  assert gemma_3.vocab_size == 262_144
  # The official tokenizer.json has it, too.
  assert gemma_3.fingerprint == "d6c19421b0bc502f"


def test_pieces_of_bytes():
  euro, cut = ["<0xE2>", "<0x82>", "<0xAC>"], "\N{REPLACEMENT CHARACTER}"
  assert tokenizer.display(["▁a", *euro, *euro, "b▁"]) == [
    *(" a", "€", "", "", "€", "", "", "b ")
  ]
  assert tokenizer.display(euro[:2]) == [cut, cut]
  assert tokenizer.display([euro[2], "<0x41>", euro[0]]) == [cut, "A", cut]
  assert tokenizer.display([euro[0], *euro]) == [cut, "€", "", ""]
  assert tokenizer.display([]) == []


@pytest.fixture
def folder(tmp_path):
  tiny_files.write_tokenizer(tmp_path / "hf", 20)
  return tmp_path / "hf"


def test_a_tokenizer_json(folder):
  hf = tokenizer.HuggingFaceTokenizer(folder)
  assert (hf.pad_id, hf.eos_id, hf.bos_id, hf.vocab_size) == (0, 1, 2, 20)
  assert hf.encode("w7 w19 <bos>") == [7, 19, 2]
  assert hf.pieces([2, 7]) == ["<bos>", "w7"]
  assert hf.decode([2, 7, 19, 1, 0]) == "w7 w19"


def test_ids_equal_those_of_transformers(folder):
  import transformers

  theirs = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(folder / "tokenizer.json")
  )
  text = "w7 what w4 <eos> w5w6"
  ours = tokenizer.HuggingFaceTokenizer(folder).encode(text)
  assert ours == theirs.encode(text, add_special_tokens=False)


def test_names_of_the_special_tokens_come_from_the_config(folder):
  config = folder / "tokenizer_config.json"
  config.write_text(
    json.dumps({"bos_token": {"content": "w9"}, "eos_token": "w8"})
  )
  hf = tokenizer.HuggingFaceTokenizer(folder)
  assert (hf.bos_id, hf.eos_id, hf.pad_id) == (9, 8, 0)
  config.write_text(json.dumps({"bos_token": "<s>"}))
  with pytest.raises(ValueError, match="bos_token '<s>' is not in the vocab"):
    tokenizer.HuggingFaceTokenizer(folder)


def test_words_without_a_row_in_the_embedding_are_text(folder):
  path = str(folder / "tokenizer.json")
  library = tokenizers.Tokenizer.from_file(path)
  library.add_special_tokens(["<image>"])
  library.save(path)
  assert library.encode("w7 <image> w8").ids == [7, 20, 8]
  hf = tokenizer.HuggingFaceTokenizer(folder)
  unknown = 3  # "<" and "image>", which this vocabulary does not have
  assert hf.encode("w7 <image> w8") == [7, unknown, unknown, 8]


def test_fingerprints_tell_tokenizers_apart(tmp_path, folder):
  first = tokenizer.HuggingFaceTokenizer(folder)
  assert first.fingerprint == tokenizer.HuggingFaceTokenizer(folder).fingerprint
  tiny_files.write_tokenizer(tmp_path / "more", 21)
  # Same words, but other ids for the same text.
  tiny_files.write_tokenizer(tmp_path / "split", 20)
  path = str(tmp_path / "split" / "tokenizer.json")
  library = tokenizers.Tokenizer.from_file(path)
  library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  library.save(path)
  others = [
    tokenizer.HuggingFaceTokenizer(tmp_path / name).fingerprint
    for name in ("more", "split")
  ]
  assert len({first.fingerprint, *others}) == 3


def test_no_tokenizer(tmp_path):
  with pytest.raises(
    TokenizerNotFoundError, match="neither tokenizer.json nor"
  ):
    tokenizer.open_tokenizer(tmp_path)
  with pytest.raises(
    TokenizerNotFoundError, match="tokenizer.json does not ex"
  ):
    tokenizer.HuggingFaceTokenizer(tmp_path)
  with pytest.raises(TokenizerNotFoundError, match="x.model does not exist"):
    sentencepiece_model.SentencePieceTokenizer(tmp_path / "x.model")


def test_damaged_tokenizers(tmp_path):
  for name in ("tokenizer.json", "tokenizer.model"):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=f"{name} can't be read as a"):
      tokenizer.open_tokenizer(tmp_path / name)


def test_a_missing_tokenizer_says_so_when_it_is_used():
  missing = tokenizer.MissingTokenizer("no tokenizer in folder x")
  for use in (
    lambda: missing.encode("a"),
    lambda: missing.bos_id,
    lambda: missing.fingerprint,
  ):
    with pytest.raises(TokenizerNotFoundError, match="no tokenizer in folder"):
      use()

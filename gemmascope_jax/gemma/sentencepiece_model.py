"""SentencePiece tokenizers: a model file, and one rebuilt from a GGUF."""

from __future__ import annotations

import functools
import importlib
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

from gemmascope_jax.gemma import tokenizer
from gemmascope_jax.gemma.weights.errors import TokenizerNotFoundError

# Token types in a GGUF file.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)


class SentencePieceTokenizer:
  """A SentencePiece model; see `tokenizer.Tokenizer`.

  SentencePiece itself spells control words such as "<bos>" out when it meets
  them in a text; here they become their tokens, as the `tokenizer.json` files
  that were published with the models have it.

  Args:
    path: the model file.

  Raises:
    TokenizerNotFoundError: there is none.
    ValueError: it can't be read.
  """

  def __init__(self, path: str | os.PathLike):
    path = pathlib.Path(path)
    if not path.is_file():
      raise TokenizerNotFoundError(f"no tokenizer: {path} does not exist")
    library = _imported("sentencepiece")
    self._processor = library.SentencePieceProcessor()
    try:
      self._processor.Load(os.fspath(path))
    except (OSError, RuntimeError) as error:
      raise ValueError(
        f"{path} can't be read as a SentencePiece model: {error}"
      ) from error
    self.vocab_size = self._processor.vocab_size()
    self.bos_id = self._processor.bos_id()
    self.eos_id = self._processor.eos_id()
    self.pad_id = self._processor.pad_id()
    ids = range(self.vocab_size)
    control = self._processor.IsControl(list(ids))
    self._control = {
      self._processor.IdToPiece(id_): id_ for id_ in ids if control[id_]
    }
    unknown = self._processor.unk_id()
    self._control[self._processor.IdToPiece(unknown)] = unknown
    words = "|".join(re.escape(word) for word in self._control)
    self._words = re.compile(f"({words})")

  def encode(self, text: str) -> list[int]:
    """See `tokenizer.Tokenizer`."""
    parts = self._words.split(text)
    if len(parts) == 1:
      return self._processor.EncodeAsIds(text)
    ids: list[int] = []
    for part in parts:
      if part in self._control:
        ids.append(self._control[part])
      else:
        ids += self._processor.EncodeAsIds(part)
    return ids

  def decode(self, ids: Iterable[int]) -> str:
    """See `tokenizer.Tokenizer`."""
    left_out = {self.bos_id, self.eos_id, self.pad_id}
    return self._processor.DecodeIds(
      [int(id_) for id_ in ids if int(id_) not in left_out]
    )

  def pieces(self, ids: Iterable[int]) -> list[str]:
    """See `tokenizer.Tokenizer`."""
    return tokenizer.display(
      self._processor.IdToPiece([int(id_) for id_ in ids])
    )

  @functools.cached_property
  def fingerprint(self) -> str:
    """See `tokenizer.Tokenizer`."""
    pieces = self._processor.IdToPiece(list(range(self.vocab_size)))
    return tokenizer.fingerprint(pieces, self.encode)


def rebuild(
  pieces: Sequence[str],
  scores: Sequence[float],
  types: Sequence[int],
  *,
  pad_id: int,
  eos_id: int,
  bos_id: int,
  unk_id: int,
  space_prefix: bool,
) -> bytes:
  """A SentencePiece model file from the vocabulary that a GGUF file holds.

  Args:
    pieces: V strings.
    scores: V floats.
    types: V of GGUF's token types.
    pad_id: index of the padding piece.
    eos_id: of the end of a document.
    bos_id: of the beginning of a sequence.
    unk_id: of the unknown piece.
    space_prefix: whether a space is put before every text.

  Returns:
    The bytes of the model file.
  """
  proto = _imported("sentencepiece.sentencepiece_model_pb2")
  kinds = proto.ModelProto.SentencePiece
  model = proto.ModelProto()
  trainer = model.trainer_spec
  trainer.model_type = proto.TrainerSpec.BPE
  trainer.vocab_size = len(pieces)
  trainer.byte_fallback = _BYTE in types
  trainer.split_digits = True
  trainer.allow_whitespace_only_pieces = True
  trainer.pad_id, trainer.eos_id = pad_id, eos_id
  trainer.bos_id, trainer.unk_id = bos_id, unk_id
  trainer.pad_piece, trainer.eos_piece = pieces[pad_id], pieces[eos_id]
  trainer.bos_piece, trainer.unk_piece = pieces[bos_id], pieces[unk_id]
  model.normalizer_spec.name = "identity"
  model.normalizer_spec.add_dummy_prefix = space_prefix
  model.normalizer_spec.remove_extra_whitespaces = False
  model.normalizer_spec.escape_whitespaces = True
  # Turn markers and their like count as control tokens in a GGUF, but texts
  # may hold them; only these four are left to SentencePiece as special.
  special = {pad_id: kinds.CONTROL, eos_id: kinds.CONTROL}
  special |= {bos_id: kinds.CONTROL, unk_id: kinds.UNKNOWN}
  kind = {
    _NORMAL: kinds.NORMAL,
    _UNKNOWN: kinds.NORMAL,
    _CONTROL: kinds.USER_DEFINED,
    _USER_DEFINED: kinds.USER_DEFINED,
    _UNUSED: kinds.UNUSED,
    _BYTE: kinds.BYTE,
  }
  for id_, (piece, score, type_) in enumerate(
    zip(pieces, scores, types, strict=True)
  ):
    if type_ == _USER_DEFINED:
      # Runs of spaces are stored as they are, while SentencePiece matches
      # them after it has escaped the text.
      piece = piece.replace(" ", "▁")
    model.pieces.add(
      piece=piece,
      score=float(score),
      type=special.get(id_, kind[int(type_)]),
    )
  return model.SerializeToString()


def _imported(name: str):
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ImportError(
      f"this tokenizer needs the packages sentencepiece and protobuf ({error}):"
      ' pip install "gemmascope_jax[demo]"'
    ) from error

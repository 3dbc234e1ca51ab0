"""Gemma's chat markup around documents, for SAEs of instruction-tuned models.

The paper's IT SAEs (4.5) are trained on pre-training documents that stand as
the user's turn of a chat, not on real conversations:

    <bos><start_of_turn>user\\n{document}<end_of_turn>\\n<start_of_turn>model\\n

Every position trains but those of the user prefix, whose activations are of
far larger norm and the same in every document, and of BOS, EOS and padding.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from gemmascope_jax.data.policy import TokenPolicy

START, END = "<start_of_turn>", "<end_of_turn>"
PREFIX = f"{START}user\n"
SUFFIX = f"{END}\n{START}model\n"


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """Token ids of the markup around a document, which stands after BOS.

  Attributes:
    prefix: ids of the user prefix.
    suffix: ids of the end of the turn and of the model prefix.
    words: what the tokenizer would read as markup, BOS, EOS or padding in a
      document; there it is spelled out instead.
  """

  prefix: tuple[int, ...]
  suffix: tuple[int, ...]
  words: tuple[str, ...]

  @classmethod
  def of(cls, tokenizer: Any) -> ChatTemplate:
    """The markup in a Gemma tokenizer's ids.

    Args:
      tokenizer: with `encode`, `pieces`, and `bos_id`, `eos_id`, `pad_id`.

    Raises:
      ValueError: the tokenizer has no token for a turn's start or end.
    """
    for word in (START, END):
      ids = tokenizer.encode(word)
      if len(ids) != 1:
        raise ValueError(
          f"chat markup: the tokenizer spells {word} in {len(ids)} tokens,"
          " where Gemma's has one for it: use the tokenizer of a Gemma model,"
          " or documents without chat markup"
        )
    special = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    names = tokenizer.pieces(special)
    named = [
      name
      for name, id_ in zip(names, special, strict=True)
      if name and list(tokenizer.encode(name)) == [id_]
    ]
    return cls(
      prefix=tuple(int(i) for i in tokenizer.encode(PREFIX)),
      suffix=tuple(int(i) for i in tokenizer.encode(SUFFIX)),
      words=(START, END, *dict.fromkeys(named)),
    )

  @property
  def end(self) -> int:
    """The token that ends a turn."""
    return self.suffix[0]

  @property
  def model_prefix(self) -> tuple[int, ...]:
    """What begins the model's turn: the suffix from its second marker on."""
    return self.suffix[self.suffix.index(self.prefix[0]) :]

  @property
  def between(self) -> tuple[int, ...]:
    """What stands between the end of a turn and the start of the next."""
    return self.suffix[1 : self.suffix.index(self.prefix[0])]

  @property
  def smallest_window(self) -> int:
    """Tokens in a window with BOS, the markup and one token of a document."""
    return len(self.prefix) + len(self.suffix) + 2

  def encode(self, tokenizer: Any, text: str) -> list[int]:
    """The ids of a document, in which markup is text like any other.

    The text is cut after the first character of each of `words`, so that the
    tokenizer never sees one whole.

    Args:
      tokenizer: the one that the template is of.
      text: the document.

    Returns:
      Its ids, without BOS and markup.
    """
    cuts = "|".join(
      f"(?<={re.escape(word[0])})(?={re.escape(word[1:])})"
      for word in self.words
    )
    return [i for part in re.split(cuts, text) for i in tokenizer.encode(part)]

  def policy(self, base: TokenPolicy) -> TokenPolicy:
    """`base`, and the user prefix does not count either; the suffix does."""
    return dataclasses.replace(
      base, excluded_sequences=(*base.excluded_sequences, self.prefix)
    )

  def to_dict(self) -> dict[str, Any]:
    """JSON-ready form."""
    return {
      "prefix": list(self.prefix),
      "suffix": list(self.suffix),
      "words": list(self.words),
    }

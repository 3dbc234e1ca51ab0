"""What the model says while it is steered.

Edits act at each pass of the cached sampler: on the prompt's tokens, and then
on every token that was said, never on those that the token policy excludes
(BOS above all). What a token does to those after it therefore passes through
the keys and values that the edited activations gave, as in one pass over the
whole text with the same edits.

The noise of a row is a function of the seed and the row's number alone, so the
same call with other edits is paired with this one, word for word.

Letters: S sequences, P tokens of the longest prompt, T tokens, N new tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from gemmascope_jax import gemma
from gemmascope_jax.data.policy import TokenPolicy
from gemmascope_jax.steering.edits import Edit

POSITIONS = ("all", "answer")
_ROUND = 8  # prompts are padded to a multiple of it: few shapes to compile


@dataclasses.dataclass(frozen=True, eq=False)
class Generated:
  """Prompts and how they went on.

  Attributes:
    tokens: int32 [S, T], BOS first, padded on the right.
    prompt_lengths: int32 [S], tokens of the prompt, BOS included.
    lengths: int32 [S], tokens of prompt and answer.
    texts: the answers.
  """

  tokens: np.ndarray
  prompt_lengths: np.ndarray
  lengths: np.ndarray
  texts: tuple[str, ...]

  @property
  def real(self) -> np.ndarray:
    """bool [S, T]: all tokens but the padding after them."""
    return np.arange(self.tokens.shape[1])[None] < self.lengths[:, None]

  @property
  def new(self) -> np.ndarray:
    """bool [S, T]: tokens that the model said, a stop token included."""
    place = np.arange(self.tokens.shape[1])[None]
    return self.real & (place >= self.prompt_lengths[:, None])


def generate(
  lm,
  prompts: Sequence[str],
  edits: Mapping[str, Edit] | None = None,
  *,
  max_new_tokens: int = 40,
  temperature: float = 1.0,
  seed: int = 0,
  samples: int = 1,
  positions: str = "all",
  policy: TokenPolicy | None = None,
  batch: int = 16,
) -> Generated:
  """Lets the model go on with texts, under edits.

  Args:
    lm: a `Gemma` with all its layers.
    prompts: texts, without BOS; one may be empty. A control word in one, such
      as "<start_of_turn>", is the token of that name.
    edits: as in `gemma.forward`, by site.
    max_new_tokens: N, at least 1; an answer ends before with EOS.
    temperature: 0: the likeliest word each time.
    seed: of the sampling.
    samples: answers to each prompt; they follow each other in the result.
    positions: where edits act:
      "all": at every token, the prompt's too;
      "answer": at the prompt's last token, which says what comes first, and
      at every token after it.
      Never at a token that the policy excludes. (What it excludes as a run of
      several tokens is recognised in prompts alone.)
    policy: None: the tokenizer's, without BOS, EOS and padding.
    batch: rows at a time; changes nothing but speed.

  Returns:
    See `Generated`.

  Raises:
    ValueError: no prompts, a number below 1, unknown positions, a prompt that
      is too long; and what `gemma.sample` refuses.
  """
  for name, value in (("samples", samples), ("batch", batch)):
    if value < 1:
      raise ValueError(f"{name} is {value}; expected at least 1")
  if positions not in POSITIONS:
    raise ValueError(
      f"positions are {positions!r}; expected one of {', '.join(POSITIONS)}"
    )
  tokenizer = lm.tokenizer
  policy = TokenPolicy.of(tokenizer) if policy is None else policy
  asked, lengths = encode(lm, prompts, room=max_new_tokens)
  tokens = np.repeat(asked, samples, axis=0)
  lengths = np.repeat(lengths, samples)
  batch = min(batch, len(tokens))
  found = []
  for start in range(0, len(tokens), batch):
    rows = np.arange(start, min(start + batch, len(tokens)))
    # Always as many rows, so that nothing is compiled twice.
    filled = np.append(rows, np.zeros(batch - len(rows), int))
    given = tokens[filled]
    there = np.arange(batch) < len(rows)
    mask = np.arange(given.shape[1])[None] < lengths[filled][:, None]
    edited = policy.keep(given) & mask
    if positions == "answer":
      last = np.arange(given.shape[1])[None] == lengths[filled][:, None] - 1
      edited &= last
    said = gemma.sample(
      lm.config,
      lm.params,
      given,
      mask=mask & there[:, None],
      stop_ids=(tokenizer.eos_id,),
      pad_id=tokenizer.pad_id,
      max_new_tokens=max_new_tokens,
      temperature=temperature,
      seed=seed,
      rows=filled.tolist(),
      edits=edits,
      edited=edited,
      unedited_ids=policy.excluded_ids,
    )
    found.append(
      [np.asarray(part)[: len(rows)] for part in (said.tokens, said.lengths)]
    )
  whole, ends = map(np.concatenate, zip(*found, strict=True))
  return Generated(
    tokens=whole,
    prompt_lengths=lengths.astype(np.int32),
    lengths=ends,
    texts=tuple(
      tokenizer.decode(row[start:end])
      for row, start, end in zip(whole, lengths, ends, strict=True)
    ),
  )


def encode(
  lm, texts: Sequence[str], room: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Texts as rows of tokens, each beginning with BOS.

  Args:
    lm: a `Gemma`.
    texts: without BOS.
    room: tokens that have to fit in after each.

  Returns:
    int32 [S, P], padded on the right to a multiple of 8, and int32 [S], their
    lengths.

  Raises:
    ValueError: none, something that is not a text, or one that is too long for
      the model (says which).
  """
  if isinstance(texts, str) or not len(texts):
    raise ValueError(f"texts are {texts!r}: expected a list of at least one")
  rows = []
  for number, text in enumerate(texts):
    if not isinstance(text, str):
      raise ValueError(f"text {number} is {text!r}: expected a text")
    rows.append([lm.tokenizer.bos_id, *lm.tokenizer.encode(text)])
  lengths = np.array([len(row) for row in rows], np.int32)
  longest = int(lengths.argmax())
  width = -(-int(lengths.max()) // _ROUND) * _ROUND
  if width + room > lm.config.context:
    raise ValueError(
      f"text {longest} ({texts[longest][:40]!r}...) has {lengths[longest]}"
      f" tokens, and {room} may follow: {lm.label} is made for"
      f" {lm.config.context}; shorten it, or ask for less"
    )
  tokens = np.full((len(rows), width), lm.tokenizer.pad_id, np.int32)
  for row, ids in zip(tokens, rows, strict=True):
    row[: len(ids)] = ids
  return tokens, lengths

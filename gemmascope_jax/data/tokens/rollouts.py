"""Rollouts: prompts in a chat's markup, and what the model answered.

The paper's evaluation of instruction-tuned models (4.5): sampled at temperature
1, and looked at separately on what the user said and on what the model did. So
every position has a role. A prompt of several turns is asked one after the
other, each after the model's answer to the one before.

Letters: S sequences (rollouts), T tokens.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from gemmascope_jax import artifacts, gemma
from gemmascope_jax.data.text.documents import content_key
from gemmascope_jax.data.tokens.chat import ChatTemplate
from gemmascope_jax.data.tokens.packing import NO_DOCUMENT, Windows

PADDING, MARKUP, PROMPT, ROLLOUT = range(4)
FORMAT = 1

_ROUND = 32  # prompts are padded to a multiple of it: few shapes to compile


@dataclasses.dataclass(frozen=True, eq=False)
class Rollouts:
  """Prompts and answers.

  Attributes:
    tokens: int32 [S, T], BOS first, padded on the right.
    roles: uint8 [S, T], of each token:
      PADDING 0;
      MARKUP 1: BOS, the user prefix, what stands between an answer and it;
      PROMPT 2: what the user said, and the model prefix after it;
      ROLLOUT 3: what the model said, the end of its turn included.
    stopped: bool [S], whether the last answer came to its end before it had
      as many tokens as allowed.
    answers: int32 [S], how many turns were answered.
    about: what made them, JSON-ready.
  """

  tokens: np.ndarray
  roles: np.ndarray
  stopped: np.ndarray
  answers: np.ndarray
  about: dict[str, Any]

  @property
  def prompt(self) -> np.ndarray:
    """bool [S, T]: user text and model prefix."""
    return self.roles == PROMPT

  @property
  def rollout(self) -> np.ndarray:
    """bool [S, T]: tokens that the model sampled."""
    return self.roles == ROLLOUT

  @property
  def prompt_lengths(self) -> np.ndarray:
    """int [S]: tokens before the first that was sampled, BOS included."""
    return self.rollout.argmax(axis=1)


def rollouts(
  lm: gemma.Gemma,
  prompts: Sequence[Sequence[str]],
  *,
  max_new_tokens: int,
  temperature: float = 1.0,
  seed: int = 0,
  per_prompt: int = 1,
  turns: int | None = None,
  batch: int = 16,
  folder: str | os.PathLike | None = None,
  source: str = "",
  licence: str = "",
  progress: bool = True,
) -> Rollouts:
  """Samples answers; with a folder, keeps them, and goes on after a kill.

  An answer ends with the end of the turn or of the text (EOS). One that has no
  room to end is closed with the end of the turn, as markup, where another turn
  follows; after EOS none follows.

  Args:
    lm: with all its layers.
    prompts: the user turns of each, from `prompts.read`. Markup in them is text
      like any other.
    max_new_tokens: in an answer.
    temperature: see `gemma.sample`.
    seed: of the sampling.
    per_prompt: answers to each prompt; they follow each other in the result.
    turns: at most so many of each prompt's turns are asked; None: all.
    batch: rollouts at a time; changes nothing but speed.
    folder: where the result is kept and looked for, as rollouts-HASH.npz and
      .json, HASH being that of all that determines it; None: not kept.
    source: of the prompts, for `about`.
    licence: of the prompts, for `about`.
    progress: show a progress bar.

  Returns:
    See `Rollouts`.

  Raises:
    ValueError: no prompts, an empty one, one that is too long for the model
      (says which), a number below 1; and what `gemma.sample` refuses.
  """
  _check(prompts, per_prompt, turns, batch)
  chat = ChatTemplate.of(lm.tokenizer)
  asked = [
    [chat.encode(lm.tokenizer, text) for text in list(prompt)[:turns]]
    for prompt in prompts
    for _ in range(per_prompt)
  ]
  _check_lengths(lm, chat, asked, prompts, per_prompt, max_new_tokens)
  about = {
    "format": FORMAT,
    "model": lm.label,
    "weights_hash": lm.weights_hash,
    "tokenizer": lm.tokenizer.fingerprint,
    "prompts": artifacts.fingerprint(asked),
    "rollouts": len(asked),
    "max_new_tokens": max_new_tokens,
    "temperature": float(temperature),
    "seed": seed,
    "per_prompt": per_prompt,
  }
  name = f"rollouts-{artifacts.fingerprint(about)}"
  about |= {
    "source": source,
    "licence": licence,
    "code": artifacts.code_version(),
  }
  folder = None if folder is None else pathlib.Path(folder)
  if folder and (folder / f"{name}.json").exists():
    return load(folder / f"{name}.json")
  parts = folder and folder / f"{name}-parts"
  done = []
  bar = tqdm.tqdm(total=len(asked), desc="rollouts", disable=not progress)
  with bar:
    for start in range(0, len(asked), batch):
      rows = range(start, min(start + batch, len(asked)))
      part = parts and parts / f"{start}-{batch}.npz"
      if part and part.exists():
        arrays = _read(part)
      else:
        arrays = _some(
          lm, chat, asked, rows, batch, max_new_tokens, temperature, seed
        )
        if part:
          _write(part, arrays)
      done.append(arrays)
      bar.update(len(rows))
  found = Rollouts(**_joined(done, lm.tokenizer.pad_id), about=about)
  if folder:
    save(found, folder / f"{name}.json")
    shutil.rmtree(parts, ignore_errors=True)
  return found


def save(found: Rollouts, path: str | os.PathLike) -> None:
  """Writes `path` (.json), and beside it the arrays (.npz), which come first.

  Raises:
    OutOfDiskError: no room; there is no `path`.
  """
  path = pathlib.Path(path)
  arrays = {name: getattr(found, name) for name in _ARRAYS}
  _write(path.with_suffix(".npz"), arrays)
  digest = artifacts.sha256_file(path.with_suffix(".npz"))
  artifacts.write_json(path, found.about | {"sha256": digest})


def load(path: str | os.PathLike) -> Rollouts:
  """Reads what `save` wrote.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged, or of another format.
  """
  path = pathlib.Path(path)
  about = artifacts.read_json(path)
  if about.get("format") != FORMAT:
    raise ValueError(
      f"{path} has format {about.get('format')}; this version reads {FORMAT}"
    )
  digest = about.pop("sha256")
  if artifacts.sha256_file(path.with_suffix(".npz")) != digest:
    raise ValueError(
      f"{path.with_suffix('.npz')} is damaged: delete {path} and run the same"
      " command again"
    )
  return Rollouts(**_read(path.with_suffix(".npz")), about=about)


def windows(found: Rollouts, window: int, pad_id: int) -> Windows:
  """Rollouts to train on: each a window of its own.

  Args:
    found: see `Rollouts`.
    window: tokens of a window; longer rollouts are cut, shorter ones padded.
    pad_id: of the padding.
  """
  count, length = len(found.tokens), min(window, found.tokens.shape[1])
  tokens = np.full((count, window), pad_id, np.int32)
  tokens[:, :length] = found.tokens[:, :length]
  said = np.zeros((count, window), bool)
  said[:, :length] = (found.prompt | found.rollout)[:, :length]
  numbers = np.arange(count, dtype=np.int32)[:, None]
  keys = [content_key(row.tobytes().hex()) for row in tokens]
  return Windows(
    tokens=tokens,
    documents=np.where(said, numbers, NO_DOCUMENT).astype(np.int32),
    keys=np.array(keys, np.uint64),
    sources=(f"rollouts of {found.about['model']}",),
  )


_ARRAYS = ("tokens", "roles", "stopped", "answers")


def _check(prompts, per_prompt, turns, batch) -> None:
  if not len(prompts):
    raise ValueError("rollouts of no prompts: give at least one")
  for number, prompt in enumerate(prompts):
    if isinstance(prompt, str) or not prompt or not all(prompt):
      raise ValueError(
        f"prompt {number} is {prompt!r}: expected its turns, at least one, none"
        ' of them empty, as ("How are you?",)'
      )
  for name, value in (
    ("per_prompt", per_prompt),
    ("turns", 1 if turns is None else turns),
    ("batch", batch),
  ):
    if value < 1:
      raise ValueError(f"{name} is {value}; expected at least 1")


def _check_lengths(lm, chat, asked, prompts, per_prompt, new) -> None:
  markup = 2 + len(chat.prefix) + len(chat.suffix) + len(chat.between)
  for row, turns in enumerate(asked):
    most = sum(len(ids) + markup + new for ids in turns) + _ROUND
    if most > lm.config.context:
      text = prompts[row // per_prompt][0]
      raise ValueError(
        f"prompt {row // per_prompt} ({text[:40]!r}...) and its answers take up"
        f" to {most} tokens: {lm.label} is made for {lm.config.context}; shorten"
        " it, or lower max_new_tokens or turns"
      )


def _some(lm, chat, asked, rows, batch, new, temperature, seed):
  """The arrays of some rollouts, all of their turns."""
  eos, pad = lm.tokenizer.eos_id, lm.tokenizer.pad_id
  ids = {row: [lm.tokenizer.bos_id] for row in rows}
  roles = {row: [MARKUP] for row in rows}
  stopped = dict.fromkeys(rows, False)
  answers = dict.fromkeys(rows, 0)

  def say(row, tokens, role):
    ids[row] += [int(token) for token in tokens]
    roles[row] += [role] * len(tokens)

  for turn in range(max(len(asked[row]) for row in rows)):
    going = [
      row for row in rows if turn < len(asked[row]) and ids[row][-1] != eos
    ]
    for row in going:
      if turn:
        say(row, () if stopped[row] else (chat.end,), MARKUP)
        say(row, chat.between, MARKUP)
      say(row, chat.prefix, MARKUP)
      say(row, (*asked[row][turn], *chat.suffix), PROMPT)
    if not going:
      break
    # Always as many rows, so that nothing is compiled twice.
    longest = max(len(ids[row]) for row in going)
    shape = batch, -(-longest // _ROUND) * _ROUND
    tokens, mask = np.full(shape, pad, np.int32), np.zeros(shape, bool)
    for place, row in enumerate(going):
      tokens[place, : len(ids[row])] = ids[row]
      mask[place, : len(ids[row])] = True
    said = gemma.sample(
      lm.config,
      lm.params,
      tokens,
      mask=mask,
      stop_ids=(chat.end, eos),
      pad_id=pad,
      max_new_tokens=new,
      temperature=temperature,
      seed=seed,
      rows=[*going, *[0] * (batch - len(going))],
    )
    whole, lengths = np.asarray(said.tokens), np.asarray(said.lengths)
    for place, row in enumerate(going):
      say(row, whole[place, len(ids[row]) : lengths[place]], ROLLOUT)
      stopped[row] = bool(said.stopped[place])
      answers[row] += 1
  tokens, roles = list(ids.values()), list(roles.values())
  width = max(map(len, tokens))
  return {
    "tokens": _filled(tokens, width, pad, np.int32),
    "roles": _filled(roles, width, PADDING, np.uint8),
    "stopped": np.array([stopped[row] for row in rows]),
    "answers": np.array([answers[row] for row in rows], np.int32),
  }


def _filled(rows, width, value, dtype) -> np.ndarray:
  """Rows of different lengths, padded on the right."""
  found = np.full((len(rows), width), value, dtype)
  for number, row in enumerate(rows):
    found[number, : len(row)] = row
  return found


def _joined(parts: list[dict[str, np.ndarray]], pad: int):
  """The arrays of all parts, as wide as the widest."""
  width = max(part["tokens"].shape[1] for part in parts)
  joined = {
    name: np.concatenate([part[name] for part in parts])
    for name in ("stopped", "answers")
  }
  for name, fill in (("tokens", pad), ("roles", PADDING)):
    rows = [row for part in parts for row in part[name]]
    joined[name] = _filled(rows, width, fill, parts[0][name].dtype)
  return joined


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  with artifacts.atomic_write(path) as file:
    np.savez(file, **arrays)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(path) as found:
    return {name: found[name] for name in _ARRAYS}

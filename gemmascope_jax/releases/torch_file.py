"""PyTorch's `.pt` files of tensors, read without running what they hold.

A `.pt` file is a zip archive: `NAME/data.pkl`, a pickle that says which tensor
lies where, and `NAME/data/K`, the numbers. Unpickling runs whatever the pickle
says, so it is not unpickled. Its instructions are listed (`pickletools`, which
executes none) and followed here for the few things that a dict of tensors is
made of: dicts, tuples, strings, numbers, and the two functions that rebuild
tensors, which are recognised by name and never called. All else is an error
that names it.
"""

from __future__ import annotations

import io
import math
import os
import pathlib
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gemmascope_jax import artifacts
from gemmascope_jax.releases import archives
from gemmascope_jax.releases.stored import Stored

_LONGEST_PICKLE = 2**24
_PICKLE = "data.pkl"


def _bfloat16() -> np.dtype:
  import ml_dtypes  # of jax

  return np.dtype(ml_dtypes.bfloat16)


_STORAGES: Mapping[str, Callable[[], np.dtype]] = {
  "torch FloatStorage": lambda: np.dtype("<f4"),
  "torch DoubleStorage": lambda: np.dtype("<f8"),
  "torch HalfStorage": lambda: np.dtype("<f2"),
  "torch BFloat16Storage": _bfloat16,
  "torch LongStorage": lambda: np.dtype("<i8"),
  "torch IntStorage": lambda: np.dtype("<i4"),
}
_DICT = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"


class _Name(NamedTuple):
  """A function or class that the pickle names; it is never looked up."""

  name: str


class _Storage(NamedTuple):
  dtype: np.dtype
  key: str
  count: int


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def read(path: str | os.PathLike) -> dict[str, Stored]:
  """The tensors of a file that holds a dict of them.

  Args:
    path: of a file that `torch.save` wrote (since PyTorch 1.6).

  Returns:
    By name; of what is not looked at, nothing is read.

  Raises:
    ValueError: no such archive; a pickle that holds anything else; a tensor
      that reaches beyond its numbers.
  """
  path = pathlib.Path(path)
  with open(path, "rb") as file:
    start = file.read(2)
  if start != b"PK":
    raise ValueError(
      f"{path} is not a zip archive, as torch.save writes them"
      + (
        "; it starts as a pickle, which could run any code, so it is not read:"
        " load it where you trust it and save it again, best as safetensors"
        if start[:1] == b"\x80"
        else ""
      )
    )
  found = [n for n in archives.check(path) if n.endswith(f"/{_PICKLE}")]
  if len(found) != 1:
    raise ValueError(
      f"{path} holds {len(found)} files {_PICKLE}, expected one: not a file of"
      " torch.save"
    )
  root = found[0].removesuffix(_PICKLE)
  with zipfile.ZipFile(path) as archive:
    if archive.getinfo(found[0]).file_size > _LONGEST_PICKLE:
      raise ValueError(f"{path}: {_PICKLE} is longer than {_LONGEST_PICKLE}")
    pickled = archive.read(found[0])
    order = f"{root}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
      raise ValueError(f"{path} is of a big-endian machine: save it on another")
  tensors = _follow(pickled, path)
  return {name: _stored(path, root, name, t) for name, t in tensors.items()}


def _stored(path, root: str, name: str, tensor: _Tensor) -> Stored:
  storage = tensor.storage
  last = tensor.offset + sum(
    (size - 1) * step
    for size, step in zip(tensor.shape, tensor.strides, strict=True)
  )
  empty = 0 in tensor.shape
  if (
    min(tensor.offset, *tensor.shape, *tensor.strides, 0) < 0
    or len(tensor.shape) > 8
    or (not empty and last >= storage.count)
  ):
    raise ValueError(
      f"{path}: tensor {name} of shape {tensor.shape} reaches beyond the"
      f" {storage.count} numbers it has"
    )

  def read(index) -> np.ndarray:
    numbers = _numbers(path, f"{root}data/{storage.key}", storage)
    whole = np.lib.stride_tricks.as_strided(
      numbers[tensor.offset :],
      tensor.shape,
      [step * storage.dtype.itemsize for step in tensor.strides],
      writeable=False,
    )
    return whole[index]

  return Stored(name, tensor.shape, read)


def _numbers(path, member: str, storage: _Storage) -> np.ndarray:
  """A storage's numbers, [N]: mapped, unless they are compressed."""
  with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
    if member not in archive.namelist():
      raise ValueError(f"{path} lacks {member}: the file is damaged")
    entry = archive.getinfo(member)
    if entry.file_size != storage.count * storage.dtype.itemsize:
      raise ValueError(
        f"{path}: {member} holds {entry.file_size} bytes, expected"
        f" {storage.count} numbers of {storage.dtype}: the file is damaged"
      )
    if entry.compress_type != zipfile.ZIP_STORED:
      return np.frombuffer(archive.read(member), storage.dtype)
    return np.memmap(
      path,
      storage.dtype,
      "r",
      offset=archives.start(file, entry),
      shape=(storage.count,),
    )


def _follow(pickled: bytes, path) -> dict[str, _Tensor]:
  """The dict of tensors that a pickle describes."""

  def refuse(what: str) -> ValueError:
    return ValueError(
      f"{path} holds {what}; expected a dict of tensors alone (nothing of it"
      " was run): load it where you trust it and save its state_dict()"
    )

  stack: list[Any] = []
  marks: list[int] = []
  memo: dict[int, Any] = {}
  constants = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
  }
  literals = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE"),
  )

  def since_mark() -> list[Any]:
    place = marks.pop()
    values = stack[place:]
    del stack[place:]
    return values

  try:
    instructions = list(pickletools.genops(pickled))
  except ValueError as error:
    raise refuse(f"a pickle that is damaged ({error})") from error
  try:
    for opcode, value, _ in instructions:
      name = opcode.name
      if name in ("PROTO", "FRAME"):
        continue
      if name == "STOP":
        break
      if name in constants:
        stack.append(constants[name]())
      elif name in literals:
        stack.append(value)
      elif name == "GLOBAL":
        stack.append(_Name(value))
      elif name == "STACK_GLOBAL":
        attribute, module = stack.pop(), stack.pop()
        stack.append(_Name(f"{module} {attribute}"))
      elif name == "MARK":
        marks.append(len(stack))
      elif name == "TUPLE":
        values = since_mark()
        stack.append(tuple(values))
      elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        values = tuple(stack[-count:])
        del stack[-count:]
        stack.append(values)
      elif name in ("BINPUT", "LONG_BINPUT"):
        memo[value] = stack[-1]
      elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
      elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[value])
      elif name == "SETITEM":
        item, key = stack.pop(), stack.pop()
        stack[-1][key] = item
      elif name == "SETITEMS":
        values = since_mark()
        stack[-1].update(zip(values[::2], values[1::2], strict=True))
      elif name == "APPEND":
        item = stack.pop()
        stack[-1].append(item)
      elif name == "APPENDS":
        values = since_mark()
        stack[-1].extend(values)
      elif name == "BINPERSID":
        stack.append(_storage(stack.pop(), refuse))
      elif name == "REDUCE":
        values, function = stack.pop(), stack.pop()
        stack.append(_rebuilt(function, values, refuse))
      elif name == "BUILD":
        stack.pop()  # the attributes of a dict, such as its _metadata
        if not isinstance(stack[-1], dict):
          raise refuse("an object with a state")
      else:
        raise refuse(f"the instruction {name}")
    (found,) = stack
  except (IndexError, KeyError, TypeError, AttributeError) as error:
    raise refuse(f"a pickle that is damaged ({error})") from error
  if not isinstance(found, dict):
    raise refuse(f"a {type(found).__name__}")
  for name, value in found.items():
    if not isinstance(name, str) or not isinstance(value, _Tensor):
      raise refuse(f"{name!r} that is no tensor")
  return found


def _storage(about: Any, refuse) -> _Storage:
  kind, of, key, _, count = about
  if kind != "storage" or not isinstance(of, _Name) or of.name not in _STORAGES:
    raise refuse(f"a storage of {getattr(of, 'name', of)!r}")
  if not str(key).isalnum():
    raise refuse(f"a storage named {key!r}")
  return _Storage(_STORAGES[of.name](), str(key), int(count))


def _rebuilt(function: Any, values: Any, refuse) -> Any:
  name = getattr(function, "name", repr(function))
  if name == _DICT and not values:
    return {}
  if name == _TENSOR:
    storage, offset, shape, strides = values[:4]
    if not isinstance(storage, _Storage):
      raise refuse("a tensor without numbers")
    return _Tensor(storage, int(offset), tuple(shape), tuple(strides))
  if name == _PARAMETER and isinstance(values[0], _Tensor):
    return values[0]
  raise refuse(f"a call of {name.replace(' ', '.')!r}")


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a dict of tensors that `torch.load(path)` gives back.

  Args:
    path: of the file.
    arrays: float32, int32 or int64, by name.
  """
  kinds = {
    np.dtype("<f4"): "FloatStorage",
    np.dtype("<i4"): "IntStorage",
    np.dtype("<i8"): "LongStorage",
  }
  arrays = {k: np.array(v, order="C", copy=None) for k, v in arrays.items()}
  pickled = io.BytesIO()
  pickled.write(b"\x80\x02}(")
  for key, (name, value) in enumerate(arrays.items()):
    strides = [step // value.itemsize for step in value.strides]
    pickled.write(
      _text(name)
      + b"ctorch._utils\n_rebuild_tensor_v2\n(("
      + _text("storage")
      + f"ctorch\n{kinds[value.dtype]}\n".encode()
      + _text(str(key))
      + _text("cpu")
      + _number(value.size)
      + b"tQ"
      + _number(0)
      + _numbers_tuple(value.shape)
      + _numbers_tuple(strides)
      + b"\x89ccollections\nOrderedDict\n)RtR"
    )
  pickled.write(b"u.")
  members = {
    _PICKLE: pickled.getvalue(),
    "byteorder": b"little",
    **{f"data/{k}": v for k, v in enumerate(arrays.values())},
    "version": b"3\n",
  }
  with artifacts.atomic_write(path) as file:
    with zipfile.ZipFile(file, "w") as archive:
      for name, content in members.items():
        if isinstance(content, np.ndarray):
          content = content.reshape(-1).view(np.uint8).data
        entry = zipfile.ZipInfo(f"archive/{name}")
        with archive.open(entry, "w", force_zip64=True) as out:
          out.write(content)


def _text(value: str) -> bytes:
  content = value.encode()
  return b"X" + len(content).to_bytes(4, "little") + content


def _number(value: int) -> bytes:
  """The instruction LONG1, which holds any integer."""
  size = math.ceil((value.bit_length() + 1) / 8) if value else 0
  return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def _numbers_tuple(values) -> bytes:
  return b"(" + b"".join(_number(int(value)) for value in values) + b"t"

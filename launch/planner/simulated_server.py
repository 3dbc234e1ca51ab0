"""A server of a simulated service; its rules are those of `serving.ready`."""

from __future__ import annotations

import collections
import math

from launch.planner.events import Clock, Line

_LATE = 4  # chunks kept that were read for trainers out of the buffer
_LIVE = 30.0  # seconds; with patience 0, how long a silent trainer leads
_LEAST = 4  # chunks that a buffer holds


class _Reader:
  """A trainer as a server knows it."""

  def __init__(self, step: int, now: float):
    self.step = step  # the next chunk that it takes
    self.taken_at = now
    self.late_since: float | None = None
    self.deliver = None  # called with what it waits for


class SimulatedServer:
  """Chunks in a bounded buffer, read once for all who are close together.

  Attributes:
    owned: chunks that it has rows of.
    disk: that it reads.
    line: that it sends through.
  """

  def __init__(
    self, clock: Clock, what, owned: range, size: float, patience: float
  ):
    """Takes a `simulate.Server`, and the bytes of its part of a chunk."""
    self.owned = owned
    self.disk = Line(clock, what.disk_rate)
    self.line = Line(clock, what.network_rate)
    self._clock, self._size, self._patience = clock, size, patience
    self._capacity = max(_LEAST, int(what.buffer_bytes / size))
    self._ready: set[int] = set()
    self._late: collections.OrderedDict = collections.OrderedDict()
    self._reading: dict[int, bool] = {}  # chunk: whether for a late trainer
    self._reads_ahead = False
    self._readers: dict[object, _Reader] = {}
    self._look_at = math.inf

  def attach(self, trainer, step: int) -> None:
    """A trainer begins at a chunk, or comes back to one."""
    before = self._readers.get(trainer)
    reader = _Reader(self._following(step), self._clock.now)
    if before is not None:
      reader.late_since = before.late_since
    self._readers[trainer] = reader
    self._go_on()

  def detach(self, trainer) -> None:
    """A trainer is gone without a word: what it waited for is not sent."""
    if trainer in self._readers:
      self._readers[trainer].deliver = None

  def leave(self, trainer) -> None:
    """A trainer has all that it wants."""
    self._readers.pop(trainer, None)
    self._go_on()

  def ask(self, trainer, deliver) -> None:
    """A trainer wants its next chunk; `deliver` is called when it has come."""
    self._readers[trainer].deliver = deliver
    self._go_on()

  def _following(self, step: int) -> int:
    return max(step, self.owned.start)

  def _go_on(self) -> None:
    """Gives what can be given, reads what can be read."""
    for reader in list(self._readers.values()):
      if reader.deliver is not None:
        self._give(reader)
    self._read_ahead()

  def _give(self, reader: _Reader) -> None:
    step = reader.step
    if step in self._ready or step in self._late:
      if step in self._ready:
        reader.late_since = None
      deliver, reader.deliver = reader.deliver, None
      reader.step, reader.taken_at = step + 1, self._clock.now
      self.line.use(self._size, deliver)
    elif step not in self._reading:
      late = self._is_late(reader)
      if late and reader.late_since is None:
        reader.late_since = self._clock.now
      if late or self._has_room(step):
        self._read(step, late)
      else:
        self._look_later()

  def _read_ahead(self) -> None:
    leader = self._leader()
    if leader is None or self._reads_ahead:
      return
    ahead = max(1, self._capacity // 4)
    last = min(leader.step + ahead, self.owned.stop)
    for step in range(leader.step, last):
      if not (
        step in self._ready or step in self._late or step in self._reading
      ):
        if self._has_room():
          self._reads_ahead = True
          self._read(step, False, ahead=True)
        return

  def _read(self, step: int, late: bool, ahead: bool = False) -> None:
    self._reading[step] = late

    def ready():
      del self._reading[step]
      if ahead:
        self._reads_ahead = False
      if late:
        self._late[step] = None
        while len(self._late) > _LATE:
          self._late.popitem(last=False)
      else:
        self._ready.add(step)
      self._go_on()

    self.disk.use(self._size, ready)

  def _is_live(self, reader: _Reader) -> bool:
    silent = self._clock.now - reader.taken_at
    return silent < (self._patience or _LIVE)

  def _is_late(self, reader: _Reader) -> bool:
    return any(
      other.step > reader.step and self._is_live(other)
      for other in self._readers.values()
    )

  def _leader(self) -> _Reader | None:
    live = filter(self._is_live, self._readers.values())
    return max(live, key=lambda reader: reader.step, default=None)

  def _is_waited_for(self, reader: _Reader) -> bool:
    now, since = self._clock.now, reader.late_since
    return now - reader.taken_at < self._patience and (
      since is None or now - since < self._patience
    )

  def _has_room(self, wanted: int | None = None) -> bool:
    coming = 1 + sum(not late for late in self._reading.values())
    too_many = len(self._ready) + coming - self._capacity
    if too_many <= 0:
      return True
    needed = [
      each.step for each in self._readers.values() if self._is_waited_for(each)
    ]
    leader = self._leader()
    if leader is not None:
      needed.append(leader.step)
    least = min(needed, default=math.inf)
    going = sorted(step for step in self._ready if step < least)
    if wanted is not None:
      going += sorted((s for s in self._ready if s > wanted), reverse=True)
    self._ready.difference_update(going[:too_many])
    return too_many <= len(going)

  def _look_later(self) -> None:
    """Looks again when patience with someone ends."""
    now = self._clock.now
    ends = [
      since + self._patience
      for each in self._readers.values()
      for since in (each.taken_at, each.late_since)
      if since is not None and since + self._patience > now
    ]
    look = min(ends, default=math.inf) * (1 + 1e-12) + 1e-6
    if math.isfinite(look) and not now < self._look_at <= look:
      self._look_at = look
      self._clock.at(look, self._go_on)

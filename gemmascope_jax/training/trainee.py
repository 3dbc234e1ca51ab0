"""A member while it trains: its state on the devices, and its checkpoints."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from gemmascope_jax import checkpoints, parallel
from gemmascope_jax.sae import sweep, train_step
from gemmascope_jax.sae.config import Recipe
from gemmascope_jax.sae.train_step import TrainState
from gemmascope_jax.training import monitors
from gemmascope_jax.training.roster import Member


@dataclasses.dataclass(eq=False)
class Trainee:
  """What the loop changes of a member.

  Attributes:
    member: its name, recipe and folders.
    saved: its checkpoints.
    mesh: the devices.
    state: see `TrainState`; None once it rests.
    watch: see `monitors.Watch`.
    step: updates made, without asking the device.
    is_sparse: whether its steps are sparse while there is room.
    widths: D of the input, E of the target.
  """

  member: Member
  saved: checkpoints.Run
  mesh: Mesh | None
  state: TrainState | None
  watch: monitors.Watch
  step: int

  def __post_init__(self):
    recipe, params = self.member.recipe, self.state.params
    self._knobs = train_step.Knobs.of(recipe)
    self._advance = sweep.step_fn(recipe, self.mesh)
    self._values: dict[str, jax.Array] = {}
    self.is_sparse = sweep.step_kind(recipe, self.mesh) == "sparse"
    self.widths = params["w_enc"].shape[1], params["w_dec"].shape[1]

  @property
  def recipe(self) -> Recipe:
    """How it is trained."""
    return self.member.recipe

  @property
  def trains(self) -> bool:
    """Whether it goes on."""
    return self.state is not None

  @property
  def done(self) -> bool:
    """Whether it has made all its steps."""
    return self.step == self.recipe.steps

  def advance(self, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """Starts a step; returns its metrics, which may not have arrived."""
    self.state, self._values = self._advance(self.state, x, y, self._knobs)
    self.step += 1
    return self._values

  def look(self) -> dict[str, jax.Array]:
    """Starts what a log line says, and counting anew; see `monitors`."""
    seen = monitors.look(self.recipe, self.state, self.watch, self.mesh)
    self.state, self.watch = monitors.again(self.state, self.watch)
    return seen

  def save(self, keep_best: str = "") -> None:
    """Starts a checkpoint of where it is; see `Schedule.keep_best`."""
    # FVU is the squared error over a constant.
    by = {"fvu": "squared_error"}.get(keep_best, keep_best)
    value = float(self._values[by]) if by else None
    self.saved.save(
      self.step, {"state": self.state, "watch": self.watch}, value
    )

  def rest(self) -> None:
    """Lets go of what is on the devices."""
    self.state = None


def start(
  member: Member, state: TrainState, saved: checkpoints.Run, mesh: Mesh | None
) -> Trainee:
  """A member before its first step, on the devices that train it."""
  if mesh is None:
    # Bound to the device, as restored ones are: they share compiled steps.
    state = jax.device_put(state, state.step.sharding)
  return Trainee(member, saved, mesh, state, monitors.watch(state), step=0)


def resume(
  member: Member, shapes: Any, saved: checkpoints.Run, mesh: Mesh | None
) -> Trainee:
  """A member at its last checkpoint.

  Args:
    member: see `Member`.
    shapes: of its state, `jax.ShapeDtypeStruct`s.
    saved: holds at least one.
    mesh: devices to go on with; None: the default one.
  """
  like = {"state": shapes, "watch": jax.eval_shape(monitors.watch, shapes)}
  if mesh is not None:
    like = jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=sharding
      ),
      like,
      parallel.shardings(like, mesh, parallel.SAE_RULES),
    )
  step = saved.latest
  found = saved.restore(step, like)
  return Trainee(member, saved, mesh, found["state"], found["watch"], step=step)

import jax
import pytest
from jax.sharding import AxisType

from gemmascope_jax import parallel


def test_axes_in_order_and_auto():
  mesh = parallel.make_mesh({"data": 2, "model": 4})
  assert dict(mesh.shape) == {"data": 2, "model": 4}
  assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
  assert set(mesh.devices.flat) == set(jax.devices()[:8])


def test_a_mesh_may_leave_devices_out():
  mesh = parallel.make_mesh({"model": 2}, jax.devices()[4:])
  assert set(mesh.devices.flat) <= set(jax.devices()[4:])
  assert mesh.size == 2


def test_too_few_devices():
  with pytest.raises(ValueError, match="need 18 devices, but there are 8"):
    parallel.make_mesh({"data": 3, "model": 6})


@pytest.mark.parametrize("axes", [{}, {"data": 0}])
def test_no_devices(axes):
  with pytest.raises(ValueError, match="each of size >= 1"):
    parallel.make_mesh(axes)

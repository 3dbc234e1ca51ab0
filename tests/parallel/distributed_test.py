import jax
import pytest

from gemmascope_jax import parallel


def test_a_process_alone():
  parallel.start("")
  assert jax.process_count() == 1


@pytest.mark.parametrize(
  "how", ["on", "localhost,2,0", "localhost:1234,2", "localhost:1234,2,2"]
)
def test_what_names_no_processes_is_refused(how):
  with pytest.raises(ValueError, match="expected 'auto', or HOST:PORT,COUNT"):
    parallel.start(how)

"""`experiments.plan` from the command line."""

from tests import forked


def run(*every):
  """Runs lists of arguments, one after another."""
  return forked.run(
    [["experiments.plan", *arguments] for arguments in every],
    "experiments._binary",
    "launch.planner.page",
  )


def test_quickstart():
  (found,) = run(
    ["--config=configs/quickstart.py", "--config.data.source=live"]
  )
  assert found.returncode == 0, found.stderr
  assert "gemma-3-270m" in found.stdout
  assert "Live: the model runs while training" in found.stdout
  assert "Store or make again" not in found.stdout
  assert "servers" not in found.stdout
  assert "activations of one site of 9B" in found.stdout


def test_gemma_2_2b_simulated_with_a_page(tmp_path):
  page = tmp_path / "plan.html"
  (found,) = run(
    [
      "--config=configs/gemma2_2b.py:res.12,65k",
      "--config.train.shuffle=global",
      "--config.train.tokens=100000000",
      *("--accelerator=tpu_v5p", "--devices=4", "--utilisation=0.4"),
      *("--simulate", "--trainers=3", "--services=2", "--preemption_hours=1"),
      f"--page={page}",
    ]
  )
  assert found.returncode == 0, found.stderr
  assert "4 x tpu_v5p" in found.stdout and "40%" in found.stdout
  assert "67.1 TiB" in found.stdout  # 8B rows of 2304 float32, and checks
  assert "Simulated: servers and trainers" in found.stdout
  assert f"written  {page}" in found.stdout
  assert "Plan of runs/gemma-2-2b/res.12_65k" in page.read_text()


def test_what_is_free_is_never_as_dear(tmp_path):
  page = tmp_path / "plan.html"
  common = ["--config=configs/quickstart.py", f"--page={page}"]
  common += ["--config.mesh.data=2", "--config.mesh.model=3"]
  free = {"tib_month_dollars": "storing", "device_dollars": "making them"}
  every = run(*([*common, f"--{price}=0"] for price in free))
  for found, what in zip(every, free.values(), strict=True):
    assert found.returncode == 0, found.stderr
    assert f"never equal, as {what} is free" in found.stdout
    assert "6 x h100" in found.stdout  # those of the mesh


def test_errors_are_short():
  expected = {
    "--servers=3": "--servers does nothing without --simulate",
    "--peak_tflops=-5": "--peak_tflops=-5.0: expected 0 or more",
    "--simulate --config.data.source=live": (
      'data.source is "live": a trainer makes its own activations'
    ),
    "--model=gpt2": "--model=gpt2: expected one of gemma-2-2b",
    "--model=gemma-2-2b": (
      "--model=gemma-2-2b, but lm.source is 'demo': leave --model out"
    ),
    "--config.lm.dtype=foo": "lm.dtype is 'foo'; expected one of float32",
    "--config.train.site=res.18": "site res.18: gemma-3-270m has layers 0..17",
    "--config=configs/finetune.py": "this is no config of SAEs",
    "--device_dollars=nan": "--device_dollars=nan: expected 0 or more",
  }
  common = "--config=configs/quickstart.py"
  every = run(*([common, *flag.split()] for flag in expected))
  for found, (flag, said) in zip(every, expected.items(), strict=True):
    assert found.returncode == 1, flag
    assert said in found.stderr, flag
    assert "Traceback" not in found.stderr, flag

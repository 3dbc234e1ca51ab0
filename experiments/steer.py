"""Text under a steered latent, beside the model's own.

python -m experiments.steer --sae=PATH --latent=7 --prompt='I think that'
python -m experiments.steer --sae=PATH --latent=7 --method=clamp --strength=2 \\
  --prompt='I think that' --prompt='Yesterday I' --samples=3
python -m experiments.steer --sae=PATH --latent=7 --compare --words=car,cars \\
  --out=runs/steer

Strength 1 is the latent's typical maximum on text, or --unit. --compare weighs
adding, clamping, a mean difference of texts and a random direction; it writes
steering.json and steering.png, and goes on where it was stopped.
"""

import pathlib
import shutil

from absl import flags

from configs import quickstart
from experiments import _binary
from gemmascope_jax.experiment import settings, steering
from gemmascope_jax.report import steering_table
from gemmascope_jax.steering import generation, prompts

_SAE = flags.DEFINE_string("sae", "", "The SAE: PATH, or SITE=PATH.")
_LATENT = flags.DEFINE_integer("latent", None, "Which of its latents.")
_LM = flags.DEFINE_string("lm", "", "The model's source; default: demo.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "A text to go on with.")
_METHOD = flags.DEFINE_enum("method", "add", steering.METHODS, "How to steer.")
_STRENGTH = flags.DEFINE_float("strength", 1.0, "1: --unit.")
_UNIT = flags.DEFINE_float(
  "unit", None, "Activation that strength 1 is; default: measured on --text."
)
_POSITIONS = flags.DEFINE_enum(
  "positions", "all", generation.POSITIONS, "Which tokens are edited."
)
_SAMPLES = flags.DEFINE_integer(
  "samples", None, "Answers to each prompt.", lower_bound=1
)
_NEW = flags.DEFINE_integer("new_tokens", 32, "Of an answer, at most.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0: likeliest words.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.")
_TEXT = flags.DEFINE_list("text", [], "Texts to measure on; packaged ones.")
_SEQUENCES = flags.DEFINE_integer("sequences", 144, "Of these texts.")
_COMPARE = flags.DEFINE_bool("compare", False, "Compare ways to steer.")
_STRENGTHS = flags.DEFINE_list(
  "strengths", ["0.5", "1", "2", "4", "8"], "compare: to try."
)
_WORDS = flags.DEFINE_list("words", [], "compare: of the concept.")
_POSITIVE = flags.DEFINE_string(
  "positive", "", "compare: file, a text a line that has the concept."
)
_NEGATIVE = flags.DEFINE_string("negative", "", "compare: that lacks it.")
_OUT = flags.DEFINE_string("out", "", "compare: folder to write to.")


def main(config, arguments) -> None:
  """Says what the model says, or compares."""
  if arguments:
    raise ValueError(f"{' '.join(arguments)}: expected flags only")
  if not _SAE.value or _LATENT.value is None:
    raise ValueError("expected --sae=PATH and --latent=NUMBER")
  if not (_PROMPT.value or _COMPARE.value):
    raise ValueError("expected --prompt='a text to go on with', or --compare")
  if _COMPARE.value and not _OUT.value:
    raise ValueError("--compare: expected --out=FOLDER to write to")
  _refuse_unused()
  strengths = [_number(each) for each in _STRENGTHS.value]
  positive, negative = (_lines(f.value) for f in (_POSITIVE, _NEGATIVE))
  if config is None:
    config = quickstart.get_config()
  with config.unlocked():
    config.evaluate.sequences = _SEQUENCES.value
    config.evaluate.stride = 1
    config.seed = _SEED.value
    config.lm.source = _LM.value or config.lm.source
    config.data.sources = tuple(_TEXT.value) or settings.sources(config)
  one = steering.find(config, _SAE.value, _LATENT.value)
  options = {
    "max_new_tokens": _NEW.value,
    "temperature": _TEMPERATURE.value,
    "seed": _SEED.value,
    "positions": _POSITIONS.value,
  }
  if _COMPARE.value:
    text = steering.read_text(config, one)
    result = steering.compare(
      config,
      one,
      text,
      _OUT.value,
      strengths=strengths,
      unit=_UNIT.value,
      positive=positive,
      negative=negative,
      asked=_PROMPT.value or prompts.PROMPTS,
      words=_WORDS.value,
      samples=_SAMPLES.value or 2,
      **options,
    )
    print(steering_table.terminal_table(result))
    print(f"\nLook: {pathlib.Path(_OUT.value, steering.FIGURE)}")
    return
  unit = _UNIT.value
  if unit is None and _METHOD.value != "ablate":
    unit = steering.read_text(config, one).unit
    print(f"Strength 1 is an activation of {unit:.4g}, the typical maximum.\n")
  made = steering.edit(one, _METHOD.value, _STRENGTH.value, unit or 1.0)
  pairs = steering.say(
    one, _PROMPT.value, made, samples=_SAMPLES.value or 1, **options
  )
  how = f"{_METHOD.value} latent {_LATENT.value}"
  if _METHOD.value != "ablate":
    how += f", strength {_STRENGTH.value:g}"
  width = min(shutil.get_terminal_size((100, 24)).columns, 160)
  print(steering_table.columns(pairs, ("unsteered", how), width))


def _refuse_unused() -> None:
  """Names a flag that would do nothing, and a unit that is none."""
  if _COMPARE.value:
    _binary.refuse("with --compare", _METHOD, _STRENGTH)
  else:
    of_compare = (_WORDS, _STRENGTHS, _POSITIVE, _NEGATIVE, _OUT)
    _binary.refuse("without --compare", *of_compare)
    if _METHOD.value == "ablate":
      _binary.refuse("with --method=ablate", _STRENGTH, _UNIT)
    if _UNIT.value is not None or _METHOD.value == "ablate":
      _binary.refuse("with --unit or ablate", _TEXT, _SEQUENCES)
  if _UNIT.value is not None and not 0 < _UNIT.value < float("inf"):
    raise ValueError(
      f"--unit={_UNIT.value}: expected an activation above 0, that strength 1"
      " stands for; to push away give a negative --strength"
    )


def _number(text: str) -> float:
  try:
    return float(text)
  except ValueError as error:
    raise ValueError(
      f"--strengths: {text!r} is no number; expected some, as 0.5,1,2"
    ) from error


def _lines(path: str) -> list[str]:
  if not path:
    return []
  lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
  return [line for line in lines if line.strip()]


if __name__ == "__main__":
  _binary.run_commands(main)

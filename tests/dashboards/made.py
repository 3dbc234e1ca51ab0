"""Latents as `studies.latents.details` gives them, made by hand."""

import math

TOKENS = ("The", " city", "\n", "<script>window.bad=1</script>", " Paris", "é")


def context(values, peak=None, quantile=None):
  peak = (
    max(range(len(values)), key=values.__getitem__) if peak is None else peak
  )
  found = {
    "window": 0,
    "pieces": [TOKENS[i % len(TOKENS)] for i in range(len(values))],
    "values": values,
    "peak": peak,
  }
  return found if quantile is None else {"quantile": quantile} | found


def latent(index, frequency=0.01, largest=4.0, words=("The",)):
  return {
    "index": index,
    "frequency": frequency,
    "frequency_stderr": 0.001,
    "max": largest,
    "mean": largest / 2,
    "histogram": {"edges": [0.0, 1.0, 2.0, 4.0], "counts": [5, 0, 3]},
    "contexts": [context([0.0, largest, 0.5, 0.0, 0.0, 0.0])],
    "quantile_contexts": [
      context([0.0, 0.0, 1.5, 0.0, 0.0, 0.0], quantile=0.5)
    ],
    "top_tokens": [[word, largest * 0.9] for word in words],
    "top_logits": [[" Paris", 1.5], ["</script>", 1.0]],
    "bottom_logits": [["no", -1.5]],
    "by_direction": [[(index + 1) % 70, 0.5, ["The"]], [999, 0.4, [" city"]]],
    "by_firing": [[(index + 2) % 70, math.nan, ["The"]]],
  }


SAE = {
  "name": "an SAE <b>at</b> res.1",
  "facts": "tiny, res.1, 70 latents",
  "about": [["model", "tiny"], ["k", None]],
  "fidelity": [
    ["FVU", {"mean": 0.25, "stderr": 0.01, "n": 12}, "missed variance"],
    ["L0", None, "active latents"],
  ],
  "measured_on": "12 sequences",
  "made_of": [["texts", "words"]],
}


def latents():
  found = [latent(i, frequency=(i + 1) / 1000) for i in range(70)]
  found[5] = latent(5, 0.002, 8.0, (" Paris", "<img src=x onerror=alert(1)>"))
  found[69] = latent(69, 0.0, 0.0, ()) | {
    "histogram": {"edges": [0.0], "counts": []},
    "contexts": [],
    "quantile_contexts": [],
  }
  return found


EXPLANATIONS = {
  5: {"explanation": "the token Paris <i>only</i>", "score": 0.97},
  7: {"explanation": "articles", "score": None},
}

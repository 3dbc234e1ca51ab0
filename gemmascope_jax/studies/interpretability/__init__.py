"""Interpretability of latents: simulated activations, and people's ratings.

`gathering` draws latents and contexts from a store; an explainer and a
simulator (`token_statistics`, `lm_explainer` and `lm_simulator`, or `chat`) are
judged by `study.run`; `rating_sheet` and `ratings` are for people.

    gather = functools.partial(gathering.gather, store=store, design=Design())
    statistics = TokenStatistics(tokenizer=lm.tokenizer)
    result = run({"jumprelu": sae}, gather, statistics, statistics, "answers/")
"""

from gemmascope_jax.studies.interpretability.chat import (
  ChatExplainer,
  ChatSimulator,
  Prices,
)
from gemmascope_jax.studies.interpretability.chat_endpoint import ChatEndpoint
from gemmascope_jax.studies.interpretability.contexts import (
  Contexts,
  Design,
  Gathered,
  Sample,
)
from gemmascope_jax.studies.interpretability.findings import findings
from gemmascope_jax.studies.interpretability.gathering import gather
from gemmascope_jax.studies.interpretability.lm_explainer import LMExplainer
from gemmascope_jax.studies.interpretability.lm_simulator import LMSimulator
from gemmascope_jax.studies.interpretability.outcomes import Failure
from gemmascope_jax.studies.interpretability.study import run
from gemmascope_jax.studies.interpretability.token_statistics import (
  TokenStatistics,
)

"""Which latents make a model say what it says, and through which others.

    saes = {"res.5": gs.sae.load(...), "res.12": gs.sae.load(...)}
    metric = gs.circuits.Metric(answer, wrong)
    found = gs.circuits.attribute(lm, saes, clean, patch, metric)

`direct`: what latents write straight into a logit; `attribute`: their indirect
effects and the edges between them; `export`: the graph as circuit viewers read
it; `persistent`: which latents of later layers are the same.
"""

from gemmascope_jax.circuits.attribute import Circuit, Edge, Node, attribute
from gemmascope_jax.circuits.direct import Direct, direct, promoted
from gemmascope_jax.circuits.places import EMBED, Metric
from gemmascope_jax.circuits.result import result

"""Pages about the latents of an SAE, for a browser and for other viewers.

`site` writes a folder that works from a disk and from any web server,
`neighbours` finds each latent's nearest, `live` serves it with a model behind,
`export` writes the formats of other viewers.
"""

from gemmascope_jax.dashboards import export, live, neighbours, site

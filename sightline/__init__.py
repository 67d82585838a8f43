"""Sightline: from image-text pairs to a served vision-language model.

The front door. The rooms are linked below this package, so everything imports as `sightline.<room>`:
`models` (tensors only), `pipelines` (jobs over data), `serve` (endpoints) and `infra` (clusters).
"""

__version__ = "0.1.0"

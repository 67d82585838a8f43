"""Lenses: what a vision model sees, as mathematics on tensors; one file per lens.

A lens takes a `Subject` (any image tower that Sightline can load) and normalised images, and returns numbers. Maps over corpora and
seeds, figures and files are the job's (`pipelines/lens`).
"""

"""Downloads of what other people name: a URL in, a body that begins like an image or a reason out, and no way into our own network.

Ingest fetches lists of URLs with it, the service a single one that a request names.
"""

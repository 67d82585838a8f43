"""Laws are checked on many inputs, not against the clock: a busy machine must not fail them."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("laws", deadline=None, derandomize=True)
settings.load_profile("laws")

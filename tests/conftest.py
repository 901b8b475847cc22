"""Settings of the whole test suite."""

from __future__ import annotations

from hypothesis import settings

# A shared or busy machine makes any deadline flaky; pytest's own timeout still ends what hangs.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

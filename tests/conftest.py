"""Settings for every test."""

import os

import pytest
from hypothesis import HealthCheck, settings

# The networks are tiny: more threads only wait for each other, most of all where tests share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Examples are whole networks: building one may take longer than hypothesis expects of a number.
settings.register_profile(
    "slimc",
    deadline=None,
    max_examples=30,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("slimc")


@pytest.fixture
def short_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """``slimc tune`` on fewer and smaller attentions; everything else about it is real."""
    from slimc.evaluate import tune

    monkeypatch.setattr(tune, "_DIMS", (48,))
    monkeypatch.setattr(tune, "_SIDES", (4, 5))
    monkeypatch.setattr(tune, "_SECTIONS", 6)
    monkeypatch.setattr(tune, "_LOADINGS", 2)
    monkeypatch.setattr(tune, "_ROUNDS", 1)

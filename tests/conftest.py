"""Settings for every test."""

from hypothesis import HealthCheck, settings

# Examples are whole networks: building one may take longer than hypothesis expects of a number.
settings.register_profile(
    "slimc",
    deadline=None,
    max_examples=30,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("slimc")

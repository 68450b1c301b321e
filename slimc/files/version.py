"""The version of slimc that is installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("slimc")
except PackageNotFoundError:  # run from its sources without being installed
    VERSION = "unknown"

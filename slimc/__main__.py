"""``python -m slimc``."""

from slimc.cli import main

main()

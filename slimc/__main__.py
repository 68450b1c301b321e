"""``python -m slimc``."""

from slimc.cli.main import main

main()

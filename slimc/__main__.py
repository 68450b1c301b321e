"""``python -m slimc``, and the `slimc` command."""

import os
import sys


def main() -> None:
    """Run the command line, which may be interrupted while it is imported too."""
    try:
        from slimc.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.stderr.flush()
        os._exit(130)
    run()


if __name__ == "__main__":
    main()

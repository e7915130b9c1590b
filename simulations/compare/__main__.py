"""Makes `python -m simulations.compare` work."""

import sys

from simulations.compare.command import main

if __name__ == "__main__":  # processes that it spawns import this module, too
    sys.exit(main())

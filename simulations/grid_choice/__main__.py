"""Makes `python -m simulations.grid_choice` work."""

import sys

from simulations.grid_choice.command import main

if __name__ == "__main__":
    sys.exit(main())

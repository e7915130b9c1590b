"""Makes `python -m simulations.separate_hosts` work."""

import sys

from simulations.separate_hosts.command import main

sys.exit(main())

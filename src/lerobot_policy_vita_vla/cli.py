"""`python -m lerobot_policy_vita_vla.cli`: the command line `vita-vla`, by the name of this package.

Its parser lives in `vita_vla_cli`, where help does not wait for LeRobot's import.
"""

import sys

from vita_vla_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())

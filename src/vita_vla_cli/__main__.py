"""`python -m vita_vla_cli` does what `vita-vla` does."""

import sys

from vita_vla_cli.cli import main

sys.exit(main())

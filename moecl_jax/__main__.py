"""Makes `python -m moecl_jax` the `moecl` command."""

import sys

from moecl_jax.cli.command import main

sys.exit(main())

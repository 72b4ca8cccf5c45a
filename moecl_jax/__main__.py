"""Makes `python -m moecl_jax` the `moecl` command."""

import sys

from moecl_jax.cli.main import main

sys.exit(main())

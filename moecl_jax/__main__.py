"""Makes `python -m moecl_jax` the `moecl` command."""

from moecl_jax.cli.main import program

program()

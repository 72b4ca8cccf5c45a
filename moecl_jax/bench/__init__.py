"""A benchmark anyone can run: `python -m moecl_jax.bench`; docs/benchmark.md explains it."""

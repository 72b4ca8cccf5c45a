"""The `moecl` command.

Here is one file a command: its arguments, one call into the library, and what it prints. `main.py`
parses, and turns errors into exit codes; `progress.py` shows progress on the terminal. Nothing is
computed here, and no other room imports from here.
"""

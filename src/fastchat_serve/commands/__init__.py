"""What ``fastchat-serve`` can be told to do: one module per command, imported when it is asked for.

Each has ``run(args) -> int``, the exit code. `cli.py` parses the arguments.
"""

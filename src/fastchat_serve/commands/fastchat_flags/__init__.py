"""``fastchat-serve controller``, ``worker`` and ``api``: started as FastChat's processes are, by the same flags.

`arguments.py` has the flags, `tables.py` says what they mean in a config, `start.py` prints that and runs it.
"""

"""How a `Config` is read: from TOML text to typed tables, with a place for every mistake.

``load.py`` is the entrance; it leans on ``sources.py`` (file, environment and ``--set`` become one
document that remembers where each value was written), ``locate.py`` (line and column of every key),
``interpolate.py`` (``${VAR}``), ``decode.py`` (document to Structs, all problems at once),
``rules.py`` (what holds between tables) and ``schema.py`` (JSON Schema for editors).
"""

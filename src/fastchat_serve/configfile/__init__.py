"""How a `Config` is read: from TOML text to typed tables, with a place for every mistake.

``load.py``         the entrance: a `Config` from a file, from ``--model``; the options of a backend
``sources.py``      file, environment and ``--set``, laid over each other to one document
``locate.py``       line and column of every key in a TOML text
``places.py``       what remembers where each value was written, and makes errors point there
``interpolate.py``  ``${VAR}``
``decode.py``       from plain values to Structs, all problems at once
``describe.py``     types and values in the words of someone who writes TOML
``rules.py``        what must hold between tables
``schema.py``       the JSON Schema, for editors
"""

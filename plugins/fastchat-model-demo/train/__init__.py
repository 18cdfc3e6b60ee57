"""How the demonstration model is made: `tokenizer`, then `train`, then `evaluate`.

Not part of the wheel. One skill per file (`greetings`, `sums`, `facts`, `copying`, `memory`, `tools`, `stories`,
`smalltalk`), `corpus` mixes them, `chat` turns a conversation into text and `draw` keeps held-out material apart.
"""

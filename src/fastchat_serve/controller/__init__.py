"""The controller: which workers live (`registry.py`), and which one gets a request (`dispatcher.py`, `policies.py`)."""

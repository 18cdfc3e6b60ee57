"""HTTP: bytes in, calls to the dispatcher, bytes out. Nothing below this floor knows of it."""

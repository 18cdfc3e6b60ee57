"""FastChat's routes, as its own processes call them: those of its controller, of its workers, and ``/api/v1/…``.

The texts and numbers of its errors appear here and nowhere else.
"""

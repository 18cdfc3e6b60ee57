"""Capacity planning: what a fleet that does not exist yet would make of a trace of requests.

The registry, the policies, the dispatcher and the failover are the real ones; time is virtual (`timeline.py`), and the
workers are arithmetic (`worker.py`). `plan.py` says what is simulated, `trace.py` what is asked, `run.py` does it, and
`outcome.py` sums up. One seed is one run: nothing depends on the machine, or on when it happens.

For tests there is an event loop under virtual time as well (`loop.py`), with a network whose faults are seeded
(`network.py`): the links between processes run on it as they are.
"""

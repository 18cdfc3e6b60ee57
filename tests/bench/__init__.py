"""``nox -s bench``: what things cost, as ratios against baselines measured in the same run.

Machines are shared and noisy: read CPU time per unit and ratios, not seconds.
"""

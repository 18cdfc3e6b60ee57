"""Engines that need no library: `echo`."""

"""Workers: an engine with slots, a queue and a life cycle; local now, remote later, one interface."""

"""Decides, and does nothing else: no clock, no I/O, no logging."""

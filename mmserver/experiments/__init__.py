"""Experiments between two versions of a model: who gets which, and what may be concluded; pure functions, no I/O, no clock."""

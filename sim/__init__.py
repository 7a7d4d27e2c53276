"""Proof by simulation: the gates, in a simulator, against the reference."""

"""Formal properties of the gates: benches with claims that hold on every path, and what proves them."""

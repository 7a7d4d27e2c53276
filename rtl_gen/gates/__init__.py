"""The gates: Amaranth components, each made from one frozen spec. Knows Amaranth and no torch."""

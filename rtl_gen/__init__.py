"""The generator: from an integer network and a board's budget to a plan, from the plan to gates, from gates to a bitstream."""

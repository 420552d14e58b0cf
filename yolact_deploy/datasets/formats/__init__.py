"""Dataset formats of other tools: each module reads one into a `ReadSet`, and some write one."""

"""Launch plans: grid, arguments and scratch memory of each kernel, computed from sizes alone."""

"""Runtimes of phones and boards, on the CPU: they run what ``export --format`` wrote for them."""

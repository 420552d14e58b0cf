"""Benchmarks of single parts, each a command of its own: `python -m yolact_deploy.benchmarks.scenarios.NAME`."""

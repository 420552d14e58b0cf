"""The version of this package, in the one place that setup.cfg and every module read."""

__version__ = "0.1.0"

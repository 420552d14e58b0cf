"""The command line: one module per command, with ``add_arguments(parser)`` and ``run(args) -> int``.

The docstring of the module is the description in its help. :mod:`yolact_deploy.cli.main` imports the requested one.
"""

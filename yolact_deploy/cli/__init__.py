"""The command line. Each command is a module here with ``HELP``, ``add_arguments(parser)`` and ``run(args) -> int``.

Only :mod:`yolact_deploy.cli.main` knows them all; it imports the one that is asked for.
"""

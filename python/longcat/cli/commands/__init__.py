"""The subcommands of `longcat`: one module each, with `add_arguments(parser)` and `run(args) -> exit code`."""

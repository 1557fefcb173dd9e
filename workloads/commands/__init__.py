"""What people type: a module a subcommand, which parses, calls and prints. Nobody imports one."""

"""TCP and files of a guarded process, by rings of operations that an untrusted host does for it."""

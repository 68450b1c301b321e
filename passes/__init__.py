"""Rewrites of the IR, one family a file; `slimc.compiler.pipeline` says in which order they run and why."""

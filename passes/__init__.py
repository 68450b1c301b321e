"""Rewrites of the IR, one family a file; `slimc.pipeline` says in which order they run and why."""

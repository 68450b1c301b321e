"""What `slimc` offers as a library."""

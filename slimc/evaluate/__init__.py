"""Is it the same, and how fast is it?"""

"""The commands of the command line, one a file. Importing one costs nothing: the work is imported where it is done."""

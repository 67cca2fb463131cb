"""The command line: a thin shell over the same objects that a script uses."""

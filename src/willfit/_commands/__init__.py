"""The commands of the command line: a file for each, named as the command is."""

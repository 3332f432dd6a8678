"""Commands of the command line, a module for each theme, and their shared options."""

"""Commands of the command line, one module each, and the options and summaries that they share."""

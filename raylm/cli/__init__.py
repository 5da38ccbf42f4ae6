"""The command line: each command parses, calls one function, prints the result and the next command to type."""

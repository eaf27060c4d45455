"""The command line: one function a command, arguments in, exit status out."""

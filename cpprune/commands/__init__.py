"""What the command line does, one function a command: arguments in, exit status out."""

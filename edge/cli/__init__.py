"""The command line: options in, one call, print. Only this folder prints."""

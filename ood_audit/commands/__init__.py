"""One file a command: parse options, call the library, print."""

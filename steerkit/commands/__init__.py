"""The command line, one file a command; `steerkit.cli` puts them together."""

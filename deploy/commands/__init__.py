"""What the other commands do: one library function each, which the command line calls."""

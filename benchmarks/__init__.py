"""Speed and memory, as programs that print a table and write JSON."""

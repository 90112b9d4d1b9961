"""Where examples come from, one file each."""

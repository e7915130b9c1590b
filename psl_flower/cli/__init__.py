"""The program `psl`."""

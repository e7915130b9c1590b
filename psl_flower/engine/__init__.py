"""The two sides of a step, what lies between them, and the same in one process."""

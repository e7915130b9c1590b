"""What lightening reaches: size, speed and accuracy beside the reference; `python -m simulations.lightening`."""

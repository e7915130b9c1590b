"""What `grid="auto"` chooses for images of different kinds; `python -m simulations.grid_choice`."""

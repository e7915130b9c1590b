"""A run on disk: its folder, how it is continued, its predictions and mistakes."""

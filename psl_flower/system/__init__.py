"""What the machine offers: files, processors, devices; and findings about it."""

"""Access to the machine: files, processors, devices; and findings about it."""

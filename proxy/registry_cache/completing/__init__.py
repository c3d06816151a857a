"""What Tab offers: as quick as Python starts, so without the libraries of the command line and of the settings."""

"""Empty: OFA's image loader imports it and calls it only on image files."""

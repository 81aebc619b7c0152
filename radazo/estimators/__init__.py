"""Turn function values into gradient estimates."""

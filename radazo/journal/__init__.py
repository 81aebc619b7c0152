"""Keep the slopes of a run in a file, and replay the run from them."""

"""What goes into the files of clients so that they ask the cache, and how it gets there."""

"""What the rest of the program asks of a store and an index, as Protocols that know no files."""

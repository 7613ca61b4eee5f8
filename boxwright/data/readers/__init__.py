"""One module for each annotation format: `find` looks for it in a folder, `read` makes a table of a split."""

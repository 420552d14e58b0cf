"""One file for each kind of source; `kinds` has the table in which they are found."""

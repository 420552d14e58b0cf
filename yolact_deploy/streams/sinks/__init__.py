"""What is written besides overlays and JSON, one file for each kind; `sink_table` has the table of their names."""

"""Datasets: COCO files and folders read, checked and scanned; results files; the generated shapes."""

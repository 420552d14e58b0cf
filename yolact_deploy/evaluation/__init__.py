"""How good a model is: COCO AP, agreement with a reference, matching, errors by kind, bootstrap intervals."""

"""Images and targets to train on: COCO-style sets, augmentation, and a generated set of shapes."""

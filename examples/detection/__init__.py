"""A single-shot detector: digit scenes, PASCAL VOC and COCO; network, training, decoding, mean average precision."""

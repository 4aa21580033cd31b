"""What a VAN is, as frozen records: sizes, tensors, labels, scores, preprocessing, card."""

"""Segmentation: what each pixel of a picture is of; `Segmenter`, `van segment`."""

"""Readers and writers of weight files, one file for each format."""

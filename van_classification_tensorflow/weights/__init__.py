"""Weight files of strangers to arrays and back: catalogue, cache, download, namings."""

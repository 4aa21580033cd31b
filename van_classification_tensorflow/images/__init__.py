"""Picture files of strangers, found and decoded to upright 8-bit pixels."""

"""`van export` and `van convert`: a model in the formats of others."""

"""`van evaluate`: how well a model classifies labelled pictures."""

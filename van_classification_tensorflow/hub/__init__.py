"""`van push` and `van pull`: one folder on a model hub for Keras, KerasHub and this package."""

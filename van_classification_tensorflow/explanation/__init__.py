"""Why a model says what it says: maps of what a class came from, and pictures of them."""

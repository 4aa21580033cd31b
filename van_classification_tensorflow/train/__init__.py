"""`van train` and `van demo`: recipes, batches, optimizer, runs that go on."""

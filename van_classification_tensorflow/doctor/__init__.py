"""`van doctor`: what is installed here, what of it runs, and what matters for a report of a bug."""

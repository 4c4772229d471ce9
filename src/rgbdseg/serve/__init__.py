"""Models behind a web page for people and an HTTP endpoint for machines."""

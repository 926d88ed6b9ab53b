"""The design space of the default machine: what was searched, and the page that says what came out."""

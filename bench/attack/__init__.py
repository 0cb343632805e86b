"""One attack suite for every server and every route to it: `just attack`."""

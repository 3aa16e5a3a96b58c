"""The only stage that talks to the API server."""

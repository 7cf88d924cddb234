"""The protocol over HTTP: connections, requests, answers and pages."""

"""What is noted of a request on its way, and where it is sent."""

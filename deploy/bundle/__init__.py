"""The folder that ships: written whole, checked before it is opened."""

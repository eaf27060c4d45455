"""Exported models as TensorFlow Lite files: front end, conversion, metadata, and the file run here."""

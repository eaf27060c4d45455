"""Trained models as files that a phone, browser or server runs, measured against the model folder."""

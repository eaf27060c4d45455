"""From waveforms to log-mel spectrograms, and what is done to both in training."""

"""What happens when lists are shown: policies act, users react, experiments and logs are read."""

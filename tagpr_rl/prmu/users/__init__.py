"""User vectors of PRMU: attention over the profile, and stored rows of known users."""

"""The stages of a search, one file each."""

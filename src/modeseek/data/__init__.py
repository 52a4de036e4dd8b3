"""Preference data: read, checked, and made into token ids."""

"""What a call costs through us, and through others."""

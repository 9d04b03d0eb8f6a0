"""The command `eaglerl evaluate`, and the presets of `eaglerl compare`."""

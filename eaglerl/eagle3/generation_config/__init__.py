"""The options that shape and end a text, merged with the target's generation config."""

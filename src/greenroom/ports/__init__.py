"""The ports: all that an engine may be (``transport``, ``store``), and the nouns as their users see them."""

"""What processes of one host know of each other, whichever engine they share: who is alive, and how the dead died."""

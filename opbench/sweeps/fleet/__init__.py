"""A sweep over many cards: who measures which cell, what becomes of those of a card that is lost, and Ray beneath."""

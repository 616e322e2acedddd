"""The lasting tie to one gateway: which connections there are to be, and who sees to it."""

"""What an application sets: options, addresses, the environment; bad values are told of here."""

"""OpenAI's API: decode, translate into the contract, and write the answers as its clients expect."""

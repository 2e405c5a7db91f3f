"""HTTP doors and the live page: A1111's and OpenAI's interfaces, and the socket for drawing live."""

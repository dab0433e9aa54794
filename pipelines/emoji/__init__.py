"""The embedded model: a genuine, tiny Stable Diffusion trained from scratch on freely licensed emoji."""
